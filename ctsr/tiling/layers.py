"""Progress and cancel inside a tile: on a CPU one tile of a network can take many seconds."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .network import TileCallback

MOST_REPORTS = 32
"""In a tile; a tile of Stable Diffusion's UNet takes a quarter of a minute on two cores."""


@contextmanager
def reporting_layers(network: nn.Module, total: int, on_tile: TileCallback) -> Generator[TileCallback, None, None]:
    """Inside, `on_tile(done, total)` is also called while a tile is at work, with `done` a fraction.

    Args:
        network: whose layers, as they end, tell how far it is.
        total: tiles that it will run.
        on_tile: what is called; an exception in it ends the run inside a layer's call.

    Yields:
        What is to be called after every tile instead of `on_tile`.
    """
    layers = [layer for layer in network.modules() if not list(layer.children()) and list(layer.parameters())]
    tiles, ended, reported = 0, 0, 0

    def end_layer(*_call: Any) -> None:
        nonlocal ended, reported
        ended += 1
        part = min(ended * MOST_REPORTS // len(layers), MOST_REPORTS - 1)
        if part > reported:
            reported = part
            on_tile(tiles + part / MOST_REPORTS, total)

    def end_tile(done: float, count: int) -> None:
        nonlocal tiles, ended, reported
        tiles, ended, reported = int(done), 0, 0
        on_tile(done, count)

    handles = [layer.register_forward_hook(end_layer) for layer in layers]
    try:
        yield end_tile
    finally:
        for handle in handles:
            handle.remove()


def is_compiled(network: nn.Module) -> bool:
    """Whether torch.compile has replaced a part, which would be compiled anew for hooks."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in network.modules())
