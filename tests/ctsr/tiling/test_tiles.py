"""Tiling: plans, equality with the untiled result, choice of the tile, out of memory."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ctsr.errors import TileMemoryError
from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini
from ctsr.tiling import memory, sink
from ctsr.tiling.memory import TILE_LADDER, fits, fitting_tile, total_memory, working_memory
from ctsr.tiling.network import TileCallback
from ctsr.tiling.plan import plan_halo, plan_overlap
from ctsr.tiling.tiled import halo_tiled, overlap_tiled

LENGTHS = [1, 2, 7, 8, 9, 31, 32, 33, 40, 63, 64, 65, 96, 97, 100, 129, 257]
GIB = 2**30
ROUNDING = 5e-6
"""Of the standard deviation, fp32: a convolution rounds the last columns of odd widths in another order."""


@pytest.fixture(scope="module")
def vae() -> TimeAwareAutoencoderMini:
    """Narrow autoencoder of the default depth, every weight random: zero-initialised layers would see nothing."""
    torch.manual_seed(0)
    model = TimeAwareAutoencoderMini(latent_channels=4, block_out_channels=(8, 8, 8), time_embed_dim=16)
    for p in model.parameters():
        nn.init.normal_(p, std=1 / math.sqrt(p[0].numel()))
    return model.eval().requires_grad_(False)


def encode(model: TimeAwareAutoencoderMini) -> Callable[[Tensor], Tensor]:
    return lambda x: model.encode(x, 300).latents


def decode(model: TimeAwareAutoencoderMini) -> Callable[[Tensor], Tensor]:
    return lambda z: model.decode(z).sample


def halo_cells(pixels: int) -> int:
    return math.ceil(pixels / 8)


# --- halo and crop ---


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("tile", [1, 8, 32, 50])
@pytest.mark.parametrize(("halo", "align"), [(0, 1), (5, 1), (5, 4)])
def test_halo_plan_writes_every_cell_once_and_reads_its_halo(length: int, tile: int, halo: int, align: int):
    spans = plan_halo(length, tile, halo, align)
    assert [i for s in spans for i in range(s.start, s.stop)] == list(range(length))
    assert len(spans) <= math.ceil(length / tile)
    assert len({s.stop - s.start for s in spans[:-1]}) <= 1
    for s in spans:
        assert 1 <= s.stop - s.start <= tile
        assert 0 <= s.read_start <= max(0, s.start - halo)
        assert min(length, s.stop + halo) <= s.read_stop <= length
        assert s.read_start % align == 0
        assert s.read_stop % align == 0 or s.read_stop == length
    assert spans[-1].read_stop == length
    assert spans[-1].stop - spans[-1].read_start >= min(length, spans[0].stop + halo)  # flush, not thin


@pytest.mark.parametrize(("tile", "halo"), [(0, 1), (-3, 1), (8, -1)])
def test_halo_plan_refuses_impossible_sizes(tile: int, halo: int):
    with pytest.raises(ValueError, match="at least 1 cell"):
        plan_halo(10, tile, halo)


@pytest.mark.parametrize(("height", "width", "tile"), [(29, 41, 12), (24, 24, 12), (5, 40, 12), (29, 41, 7)])
def test_tiled_encoder_equals_untiled(vae: TimeAwareAutoencoderMini, height: int, width: int, tile: int):
    x = torch.rand(1, 3, 8 * height, 8 * width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = encode(vae)(x)
    tiled = halo_tiled(encode(vae), x, tile, halo_cells(vae.encoder_halo), read_scale=8)
    assert whole.std() > 0.1
    torch.testing.assert_close(tiled, whole, rtol=0, atol=ROUNDING * whole.std().item())


@pytest.mark.parametrize(("height", "width", "tile"), [(29, 41, 12), (24, 24, 12), (5, 40, 12), (29, 41, 7)])
def test_tiled_decoder_equals_untiled(vae: TimeAwareAutoencoderMini, height: int, width: int, tile: int):
    z = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(2))
    whole = decode(vae)(z)
    tiled = halo_tiled(decode(vae), z, tile, halo_cells(vae.decoder_halo), write_scale=8)
    assert whole.std() > 0.1
    torch.testing.assert_close(tiled, whole, rtol=0, atol=ROUNDING * whole.std().item())


@pytest.mark.parametrize("missing", [1, 4])
def test_too_small_a_halo_is_seen(vae: TimeAwareAutoencoderMini, missing: int):
    """In float64, where the cells at the edge of the receptive field stand out from rounding."""
    model = TimeAwareAutoencoderMini.from_config(vae.config)
    model.load_state_dict(vae.state_dict())
    model.double().eval().requires_grad_(False)
    z = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    whole, halo = decode(model)(z), halo_cells(model.decoder_halo)
    error = (halo_tiled(decode(model), z, 12, halo, write_scale=8) - whole).abs().max()
    error_small = (halo_tiled(decode(model), z, 12, halo - missing, write_scale=8) - whole).abs().max()
    assert error < 1e-13
    assert error_small > 1e-11


def non_finite_extent(y: Tensor) -> tuple[int, int, int, int]:
    """First and last row and column of [1, C, H, W] that hold a NaN."""
    rows, columns = (~y.isfinite()).any(dim=(0, 1)).nonzero(as_tuple=True)
    return int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())


def test_encoder_halo_is_the_receptive_field(vae: TimeAwareAutoencoderMini):
    """A NaN just within the halo of a latent's 8x8 pixels reaches it, one pixel further does not."""
    cell, halo = 12, vae.encoder_halo
    for distance, reached in ((halo, True), (halo + 1, False)):
        x = torch.zeros(1, 3, 8 * 25, 8 * 25)
        x[..., 8 * cell - distance, 8 * cell - distance] = torch.nan
        assert bool(encode(vae)(x)[..., cell, cell].isnan().any()) is reached
        x = torch.zeros(1, 3, 8 * 25, 8 * 25)
        x[..., 8 * cell + 7 + distance, 8 * cell + 7 + distance] = torch.nan
        assert bool(encode(vae)(x)[..., cell, cell].isnan().any()) is reached


def test_decoder_halo_is_the_receptive_field(vae: TimeAwareAutoencoderMini):
    cell, halo = 12, vae.decoder_halo
    z = torch.zeros(1, 4, 25, 25)
    z[..., cell, cell] = torch.nan
    first, last = 8 * cell - halo, 8 * cell + 7 + halo
    assert non_finite_extent(decode(vae)(z)) == (first, last, first, last)


def test_networks_that_downsample_need_aligned_tiles():
    torch.manual_seed(4)
    unet = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 5, 2, 2))
    unet.requires_grad_(False)
    x = torch.randn(1, 3, 30, 22)
    torch.testing.assert_close(halo_tiled(unet, x, 9, 2, align=2), unet(x), rtol=0, atol=1e-6)


def test_untiled_and_dtypes():
    x = torch.rand(1, 2, 9, 9).bfloat16()
    shapes: list[torch.Size] = []

    def fn(tile: Tensor) -> Tensor:
        shapes.append(tile.shape)
        return tile * 2

    assert torch.equal(halo_tiled(fn, x, None, 3), x * 2)
    assert shapes == [x.shape]
    assert halo_tiled(fn, x, 4, 3).dtype == torch.bfloat16
    assert torch.equal(halo_tiled(fn, x, 4, 3, out_dtype=torch.float32), (x * 2).float())


@pytest.mark.parametrize("shape", [(1, 3, 20, 16), (1, 3, 16, 20), (1, 3, 0, 16)])
def test_pictures_of_broken_cells_are_refused(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="multiples of 8"):
        halo_tiled(lambda x: x, torch.zeros(shape), 8, 1, read_scale=8, write_scale=8)


# --- overlap ---


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("tile", "overlap"), [(1, 0), (8, 0), (32, 8), (32, 31), (96, 32)])
def test_overlap_plan_is_a_partition_of_unity(length: int, tile: int, overlap: int):
    plan = plan_overlap(length, tile, overlap)
    total = torch.zeros(length)
    for start, weights in plan:
        assert len(weights) == min(tile, length)
        assert weights.min() > 0
        total[start : start + len(weights)] += weights
    torch.testing.assert_close(total, torch.ones(length), rtol=0, atol=1e-6)
    assert plan[0][0] == 0
    assert plan[-1][0] + len(plan[-1][1]) == length
    starts = [start for start, _ in plan]
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))


def test_overlap_weights_are_symmetric():
    plan = plan_overlap(32 + 3 * 24, 32, 8)
    assert [start for start, _ in plan] == [0, 24, 48, 72]
    for (_, weights), (_, mirrored) in zip(plan, reversed(plan), strict=True):
        torch.testing.assert_close(weights, mirrored.flip(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width", "tile"), [(40, 57, 16), (9, 57, 16), (9, 9, 16), (40, 57, None)])
def test_overlap_tiles_of_a_pointwise_function_change_nothing(height: int, width: int, tile: int | None):
    x = torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(5))
    shapes: set[torch.Size] = set()

    def fn(t: Tensor) -> Tensor:
        shapes.add(t.shape)
        return torch.cat((t, t.square()), 1).bfloat16()

    y = overlap_tiled(fn, x, tile, 6)
    assert y.dtype == torch.float32
    assert len(shapes) == 1
    torch.testing.assert_close(y, fn(x).float(), rtol=0, atol=1e-5)


def test_overlap_tiles_in_batches_are_the_same():
    x = torch.randn(2, 4, 40, 57, generator=torch.Generator().manual_seed(5))
    shapes: list[int] = []
    seen: list[tuple[int, int]] = []

    def fn(t: Tensor) -> Tensor:
        shapes.append(len(t))
        return t - t.mean((1, 2, 3), keepdim=True)

    one_by_one = overlap_tiled(fn, x, 16, 6)
    total = len(shapes)
    shapes.clear()
    batched = overlap_tiled(fn, x, 16, 6, batch=8, on_tile=lambda *step: seen.append(step))
    torch.testing.assert_close(batched, one_by_one, rtol=0, atol=1e-6)
    assert shapes == [16] * (total // 8) + [2 * (total % 8)] * (total % 8 > 0)
    assert seen == [(i + 1, total) for i in range(total)]


def test_overlap_tiles_of_a_normalising_network_have_no_seams():
    """Every tile gets an offset of its own, as GroupNorm would give it: its border must not show."""
    x = torch.arange(80.0).expand(1, 1, 32, 80)
    y = overlap_tiled(lambda t: torch.full_like(t, t.mean().item()), x, 32, 16)
    steps = y.diff(dim=-1).abs()
    assert y[..., -1].mean() - y[..., 0].mean() == pytest.approx(48, abs=0.01)
    assert steps.max() < 3 * steps[..., 8:-8].mean()


@pytest.mark.parametrize(("tile", "overlap"), [(32, 32), (16, 40), (0, 0), (8, -1)])
def test_overlap_must_be_smaller_than_the_tile(tile: int, overlap: int):
    with pytest.raises(ValueError, match="choose an overlap"):
        overlap_tiled(lambda x: x, torch.zeros(1, 4, 100, 100), tile, overlap)


# --- progress and cancel ---


def tile_by_halo(x: Tensor, on_tile: TileCallback) -> Tensor:
    return halo_tiled(lambda t: t, x, 8, 2, on_tile=on_tile)


def tile_by_overlap(x: Tensor, on_tile: TileCallback) -> Tensor:
    return overlap_tiled(lambda t: t, x, 8, 2, on_tile=on_tile)


@pytest.mark.parametrize(("tiled", "total"), [(tile_by_halo, 6), (tile_by_overlap, 12)])
def test_callback_counts_tiles_and_may_cancel(tiled: Callable[[Tensor, TileCallback], Tensor], total: int):
    class CancelError(Exception):
        pass

    def cancel_at_three(done: int, _: int) -> None:
        seen.append((done, 0))
        if done == 3:
            raise CancelError

    seen: list[tuple[int, int]] = []
    x = torch.zeros(1, 1, 16, 24)
    tiled(x, lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, total) for i in range(total)]
    seen.clear()
    with pytest.raises(CancelError):
        tiled(x, cancel_at_three)
    assert len(seen) == 3


# --- choice of the tile ---


def test_untiled_exactly_when_it_fits():
    memory = 8 * working_memory(100, 60, 500)
    assert fitting_tile(100, 60, 500, memory) is None
    assert fits(100, 60, 500, memory)
    assert fitting_tile(100, 60, 500, memory - 8) == 96


def test_choice_counts_the_margin_and_ends_at_the_smallest_step():
    memory = 8 * working_memory(64 + 16, 64 + 16, 500)
    assert fitting_tile(500, 500, 500, memory, margin=8) == 64
    assert fitting_tile(500, 500, 500, memory - 8, margin=8) == 48
    assert fitting_tile(500, 500, 500, 1) == TILE_LADDER[-1]


def test_choice_is_a_function_of_its_arguments_and_monotone():
    def size(side: int, memory: int) -> float:
        return fitting_tile(side, side, 300 * 64, memory, margin=8) or math.inf

    sides, memories = range(8, 1100, 60), [i * GIB // 2 for i in range(1, 64, 4)]
    table = [[size(side, memory) for memory in memories] for side in sides]
    assert table == [[size(side, memory) for memory in memories] for side in sides]
    for row in table:
        assert row == sorted(row)
    for column in zip(*table, strict=True):
        assert list(column) == sorted(column, reverse=True)
    assert len({value for row in table for value in row}) >= 4


def test_what_goes_to_the_cpu_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    """A tile from a GPU that a network on the CPU reads must have arrived."""
    asked: list[tuple[torch.device, bool]] = []

    def to(x: Tensor, device: torch.device, dtype: torch.dtype | None, *, non_blocking: bool) -> Tensor:
        asked.append((device, non_blocking))
        return x

    monkeypatch.setattr(Tensor, "to", to)
    for name in ("cpu", "cuda", "cpu"):
        sink.move(torch.zeros(1), torch.device(name))
    assert asked == [(torch.device("cpu"), False), (torch.device("cuda"), True), (torch.device("cpu"), False)]


def test_ladder_steps():
    assert list(TILE_LADDER) == sorted(set(TILE_LADDER), reverse=True)
    assert [memory.smaller(step, 1000) for step in TILE_LADDER[:-1]] == [*TILE_LADDER[1:]]
    assert memory.smaller(10_000, 10_000) == TILE_LADDER[0]


def test_total_memory_of_this_machine_and_its_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "absent", tmp_path / "limit"))
    (tmp_path / "limit").write_text("max\n")
    physical = total_memory(cpu)
    assert physical > 2**28
    (tmp_path / "limit").write_text("1000000\n")
    assert total_memory(cpu) == 1_000_000


# --- out of memory ---


@pytest.mark.parametrize(
    ("tile", "longest", "smaller"), [(None, 100, 96), (None, 96, 64), (64, 500, 48), (256, 60, 48), (48, 500, 32)]
)
def test_the_next_smaller_tile_is_smaller_than_the_picture(tile: int | None, longest: int, smaller: int):
    assert memory.smaller(tile, longest) == smaller


@pytest.mark.parametrize(("tile", "longest"), [(None, 30), (20, 500), (32, 500), (256, 32)])
def test_there_is_none_below_the_last_step(tile: int | None, longest: int):
    with pytest.raises(TileMemoryError, match="Out of memory even with"):
        memory.smaller(tile, longest)


def test_real_allocator_failure_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)
