"""A level over a whole picture, layer by layer: exact statistics for every GroupNorm, in little more than two buffers.

A layer goes over the picture tile by tile. Its result is kept whole, so the statistics of the next GroupNorm are known
when the next layer begins. Half a resnet is a layer: two activations are kept, besides the level's input. The module
before the first resnet, whose result is wider than all others, is computed twice instead.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..plan import Span, plan_halo
from ..sink import Sink, move
from .levels import Level, Modules, forward, modulate
from .statistics import Moments, measure, normalise, pool

TILE = 128
"""Samples of the coarser grid."""
_HALO = 1
"""Samples of the coarser grid: the reach of two convolutions on the finer one, or of one that halves it."""
_FINE = 2
"""Samples of the finer grid to one of the coarser."""

Tile = tuple[Span, Span]


def run(
    level: Level,
    x: Tensor,
    device: torch.device,
    step: Callable[[], None],
    *,
    out_device: torch.device,
) -> Tensor:
    """The level's result for the whole picture.

    Args:
        level: one that works on two grids, without attention.
        x: [1, C, h * read_scale, w * read_scale], anywhere.
        device: where the level computes and keeps its activations.
        step: called `count` times, after every tile of every layer.
        out_device: where the result is wanted.

    Returns:
        [1, C', h * write_scale, w * write_scale].
    """
    layers = Layers(level, x, device, step)
    resnets = cast(Sequence[Any], level.resnets)
    moments = layers.survey(resnets[0].norm1.num_groups)
    for resnet, following in zip(resnets, [*(r.norm1 for r in resnets[1:]), _last_norm(level)], strict=True):
        moments = layers.first_half(resnet, moments)
        moments = layers.second_half(resnet, moments, following.num_groups)
    return layers.finish(moments, out_device)


def count(level: Level, height: int, width: int) -> int:
    """How many tiles `run` goes over for height x width cells, all layers together."""
    coarse = min(level.read_scale, level.write_scale)
    return (1 + 2 * len(level.resnets) + bool(level.after)) * len(plan(height * coarse, width * coarse))


def longest_read() -> int:
    """Side of what a layer reads at a time, at most, in samples of the finer grid."""
    return _FINE * (TILE + 2 * _HALO)


def kept_values(level: Level) -> int:
    """Values a cell that are kept between layers."""
    return level.input_width * level.read_scale**2 + 2 * level.result_width * level.scale**2


def plan(height: int, width: int) -> list[Tile]:
    """Tiles over a coarser grid of height x width samples."""
    return list(product(plan_halo(height, TILE, _HALO), plan_halo(width, TILE, _HALO)))


def _last_norm(level: Level) -> nn.GroupNorm:
    """What normalises the last resnet's result; where nothing does, a norm whose statistics nobody will use."""
    norms = [module for module in level.after if isinstance(module, nn.GroupNorm)]
    return norms[0] if norms else cast(Any, level.resnets[-1]).norm2


class Layers:
    """The state between layers.

    Attributes:
        x: what the next resnet gets once `before` is applied, or what its result is added to.
        before: applied to tiles of `x`; nothing from the first resnet on.
        hidden: what the first half of a resnet left for the second.
    """

    def __init__(self, level: Level, x: Tensor, device: torch.device, step: Callable[[], None]):
        self.level, self.x, self.device, self.step = level, x, device, step
        self.before: Modules = level.before
        self.dtype = next(level.resnets[0].parameters()).dtype
        coarse = min(level.read_scale, level.write_scale)
        self.read_factor, self.write_factor = level.read_scale // coarse, level.write_scale // coarse
        self.height, self.width = (side // self.read_factor for side in x.shape[-2:])
        self.hidden = x

    def survey(self, groups: int) -> Moments:
        """Statistics for the first GroupNorm."""
        return self.over_tiles(lambda tile: measure(core(self.source(tile), tile, _FINE)[0], groups))

    def first_half(self, resnet: Any, moments: Moments) -> Moments:
        """norm1 to conv1 fills `hidden`; `x` becomes what the second half is added to. Statistics for norm2."""
        hidden = self.buffer(resnet.out_channels)
        changed = resnet is self.level.resnets[0] or resnet.conv_shortcut is not None
        residual = self.buffer(resnet.out_channels) if changed else self.x

        def layer(tile: Tile) -> Moments:
            source = self.source(tile)
            y = core(resnet.conv1(resnet.nonlinearity(normalise(resnet.norm1, source, moments))), tile, _FINE)
            hidden[write(tile, _FINE)] = y
            if changed:
                inner = core(source, tile, _FINE)
                shortcut = inner if resnet.conv_shortcut is None else resnet.conv_shortcut(inner)
                residual[write(tile, _FINE)] = shortcut
            return measure(y[0], resnet.norm2.num_groups)

        following = self.over_tiles(layer)
        self.hidden, self.x, self.before, self.read_factor = hidden, residual, (), _FINE
        return following

    def second_half(self, resnet: Any, moments: Moments, groups: int) -> Moments:
        """norm2 to conv2, added to `x`. Statistics of the sum."""
        emb = self.level.embed(self.hidden)

        def layer(tile: Tile) -> Moments:
            h = modulate(resnet, normalise(resnet.norm2, self.hidden[read(tile, _FINE)], moments), emb)
            h = core(resnet.conv2(resnet.nonlinearity(h)), tile, _FINE)
            place = write(tile, _FINE)
            self.x[place] = (self.x[place] + h) / resnet.output_scale_factor
            return measure(self.x[place][0], groups)

        return self.over_tiles(layer)

    def finish(self, moments: Moments, out_device: torch.device) -> Tensor:
        """What follows the resnets."""
        self.hidden = self.x  # frees the other
        if not self.level.after:
            return self.x.to(out_device)
        sink = Sink((self.height * self.write_factor, self.width * self.write_factor), out_device)

        def layer(tile: Tile) -> Moments:
            y = self.source(tile)
            for module in self.level.after:
                y = forward(module, y, None, lambda norm, x: normalise(norm, x, moments))
            sink.write(write(tile, self.write_factor), core(y, tile, self.write_factor))
            return moments

        self.over_tiles(layer)
        return sink.result()

    def source(self, tile: Tile) -> Tensor:
        """What a resnet gets, on the finer grid, halo and all."""
        y = move(self.x[read(tile, self.read_factor)], self.device, self.dtype)
        for module in self.before:
            y = module(y)
        return y

    def over_tiles(self, layer: Callable[[Tile], Moments]) -> Moments:
        """The pooled moments of all tiles."""
        parts: list[Moments] = []
        for tile in plan(self.height, self.width):
            parts.append(layer(tile))
            self.step()
        return pool(parts)

    def buffer(self, channels: int) -> Tensor:
        """Room for an activation of the whole picture."""
        shape = (1, channels, self.height * _FINE, self.width * _FINE)
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=torch.channels_last)


def read(tile: Tile, factor: int) -> tuple[Any, ...]:
    """Index of what a tile needs, on a grid of `factor` samples to one of the coarser."""
    return ..., tile[0].read(factor), tile[1].read(factor)


def write(tile: Tile, factor: int) -> tuple[Any, ...]:
    """Index of where a tile's result goes."""
    return ..., tile[0].write(factor), tile[1].write(factor)


def core(y: Tensor, tile: Tile, factor: int) -> Tensor:
    """A tile's result without its halo."""
    return y[..., tile[0].core(factor), tile[1].core(factor)]
