"""Networks with GroupNorm over pictures that do not fit: the same as untiled, and what happens where it is not."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.tiles import border_energy
from ctsr import TimeAwareAutoencoderKL
from ctsr.models.building import settle
from ctsr.tiling import networks, tiled
from ctsr.tiling.network import Network
from ctsr.tiling.sd_vae import layer_by_layer, levels, part_by_part, schedule
from ctsr.tiling.sd_vae.levels import Levels, decoder_levels, encoder_levels, has_levels, reach, run_levels
from ctsr.tiling.sd_vae.statistics import GivenStatistics, Moments, Statistics, Survey
from tests.tiled import run_tiled

CPU = torch.device("cpu")
HEIGHT, WIDTH, TILE = 24, 40, 16
UNIT = 127.5 * 0.5
"""Steps of 1/255 in a standard deviation, for a picture in [-1, 1] whose own is 0.5."""
SD21 = {
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


@pytest.fixture(scope="module")
def vae(tiny_sd) -> TimeAwareAutoencoderKL:
    return tiny_sd.vae


@pytest.fixture(scope="module")
def double(vae) -> TimeAwareAutoencoderKL:
    """The same in float64, in which rounding cannot be taken for an error of tiling."""
    model = TimeAwareAutoencoderKL.from_config(vae.config)
    model.load_state_dict(vae.state_dict())
    return nn.Module.to(model, torch.float64).eval()


@pytest.fixture(autouse=True)
def small_layers(monkeypatch):
    """Layers in tiles of 32 samples, so that tiny pictures have several."""
    monkeypatch.setattr(layer_by_layer, "TILE", 16)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Half flat, half textured, with an offset mean: tiles of it have statistics of their own."""
    z = torch.randn(1, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
    z[..., : WIDTH // 2] *= 0.05
    return z + torch.tensor([1.0, -0.5, 0.3, 0.8])[:, None, None]


@pytest.fixture(scope="module")
def picture() -> Tensor:
    x = torch.randn(1, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(2)) * 0.5
    x[..., : 4 * WIDTH] *= 0.05
    return x + torch.tensor([0.4, -0.2, 0.1])[:, None, None]


def every(vae: TimeAwareAutoencoderKL) -> list[Network]:
    return [networks.decoder(vae), networks.encoder(vae, None), networks.encoder(vae, 500)]


def memory_for(network: Network, way: str) -> float:
    """Bytes with which the level at full resolution runs in `way`, one of two."""
    finest = max(network.levels, key=lambda level: level.scale)
    return schedule.layers_values(finest, HEIGHT * WIDTH) * network.module_dtype.itemsize if way == "layers" else 0


def naive(network: Network, x: Tensor) -> Tensor:
    """Blended tiles that normalise by themselves."""
    return run_tiled(replace(network, levels=(), run_levels=None, halo=None), x, TILE, TILE // 2, None)


def violated(y: Tensor, whole: Tensor, pitch: int) -> set[str]:
    """Which of the bounds on a tiled result do not hold, on the scale of a picture."""
    error = (y - whole) * (UNIT / whole.std())
    holds = {
        "mean": error.abs().mean() <= 1,
        "max": error.abs().max() <= 8,
        "channels": error.mean((0, 2, 3)).abs().max() <= 0.2,
        "seams": abs(border_energy(y, whole, pitch) - 1) <= 0.02,
    }
    return {name for name, held in holds.items() if not held}


@pytest.mark.parametrize("index", range(3), ids=["decoder", "encoder", "time-aware encoder"])
def test_like_untiled_where_layers_fit_and_naive_tiling_is_not(double, latents, picture, index):
    network, x = every(double)[index], latents.double() if index == 0 else picture.double()
    whole, pitch = network.call(x), TILE * network.write_scale
    memory = memory_for(network, "layers")
    ways = {group.way for group in schedule.plan(network.levels, HEIGHT, WIDTH, TILE, memory / 8)}
    assert ways == {"whole", "layers"}
    y = run_tiled(network, x, TILE, 0, None, memory)
    torch.testing.assert_close(y, whole.float(), rtol=0, atol=1e-6)
    assert violated(y, whole, pitch) == set()
    assert {"mean", "max", "channels"} <= violated(naive(network, x), whole, pitch)


@pytest.mark.parametrize("index", range(3), ids=["decoder", "encoder", "time-aware encoder"])
def test_like_untiled_where_nothing_fits(vae, latents, picture, index):
    network, x = every(vae)[index], latents if index == 0 else picture
    whole = network.call(x)
    y = run_tiled(network, x, TILE, 0, None, 0)
    assert any(group.way == "tiles" for group in schedule.plan(network.levels, HEIGHT, WIDTH, TILE, 0))
    assert violated(y, whole, TILE * network.write_scale) == set()


@pytest.mark.parametrize("index", range(3), ids=["decoder", "encoder", "time-aware encoder"])
def test_corrected_statistics_are_the_whole_picture_s(vae, latents, picture, index):
    """Five times closer than the sample's, over two levels."""
    network, cells = every(vae)[index], (HEIGHT, WIDTH)
    groups = schedule.plan(network.levels, *cells, 8, 0)
    place = [group.way for group in groups].index("tiles")
    x = latents if index == 0 else picture
    for before in groups[:place]:
        x = run_levels(before.levels, x)
    tiled = groups[place].levels
    assert len(tiled) > 1
    whole = survey_whole(tiled, x)

    parts = part_by_part.in_tiles(8, reach(tiled))
    corrected = part_by_part.whole_statistics(tiled, x, parts, CPU, lambda: None)
    assert corrected.keys() == whole.keys()
    assert distance(corrected, whole) < 0.2 * distance(sampled(tiled, x, parts), whole)


def survey_whole(network: Levels, x: Tensor) -> Statistics:
    """The statistics of the network run untiled."""
    box = (slice(0, HEIGHT), slice(0, WIDTH))
    survey = Survey((HEIGHT, WIDTH), [(box, 1)], lambda _, met: met)
    run_levels(network, x, survey)
    return survey.met


def sampled(network: Levels, x: Tensor, parts: part_by_part.Parts) -> Statistics:
    """The sample's statistics alone: under a survey that finds what the sample did, nothing is corrected."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(part_by_part, "survey_picture", lambda levels, x, parts, given, device, step: given)
        return part_by_part.whole_statistics(network, x, parts, CPU, lambda: None)


def distance(statistics: Statistics, whole: Statistics) -> float:
    """Mean error of means and deviations, in deviations."""
    errors = [
        ((a.mean - b.mean).abs() + (a.var.sqrt() - b.var.sqrt()).abs()) / b.var.sqrt()
        for a, b in ((statistics[norm], whole[norm]) for norm in whole)
    ]
    return float(torch.cat(errors).mean())


def test_tiles_are_exact_given_the_statistics(vae, latents):
    """And so cannot have seams: the halo is the receptive field."""
    first, *others = decoder_levels(vae)
    x, local = first(latents), with_fixed_statistics(tuple(others))
    whole = local(x)
    y = tiled.halo_tiled(local, x, TILE, reach(tuple(others)), write_scale=8)
    torch.testing.assert_close(y, whole, rtol=0, atol=1e-5 * whole.std().item())


def with_fixed_statistics(network: Levels) -> Callable[[Tensor], Tensor]:
    """The network whose GroupNorms take the mean for 0 and the variance for 1."""
    modules = [part for level in network for part in (*level.before, *level.resnets, *level.after)]
    norms = [norm for part in modules for norm in part.modules() if isinstance(norm, nn.GroupNorm)]
    given = GivenStatistics({norm: Moments(1, torch.zeros(8), torch.ones(8)) for norm in norms})
    return lambda x: run_levels(network, x, given)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_reach_is_the_receptive_field(double, part):
    """In float64: a change just within reach of a cell is seen in it, one cell further is not."""
    network = decoder_levels(double)[1:] if part == "decoder" else encoder_levels(double, None)[:-1]
    local, cell, read, write = with_fixed_statistics(network), 20, network[0].read_scale, network[-1].write_scale
    x = torch.zeros(1, network[0].input_width, 8 * read, 48 * read, dtype=torch.float64)
    seen: list[bool] = []
    for distance in (reach(network), reach(network) + 1):
        changed = x.clone()
        changed[..., (cell + distance) * read : (cell + distance + 1) * read] = 1
        changed[..., (cell - distance) * read : (cell - distance + 1) * read] = 1
        inside = slice(cell * write, (cell + 1) * write)
        seen.append(bool((local(changed) - local(x))[..., inside].abs().max() > 0))
    assert seen == [True, False]


def test_shapes_of_stable_diffusion():
    with torch.device("meta"):
        vae = TimeAwareAutoencoderKL(**SD21)
    assert has_levels(vae)
    decoder, encoder = decoder_levels(vae), encoder_levels(vae, 500)
    assert [(level.read_scale, level.write_scale) for level in decoder] == [(1, 1), (1, 2), (2, 4), (4, 8)]
    assert [(level.read_scale, level.write_scale) for level in encoder] == [(8, 4), (4, 2), (2, 1), (1, 1)]
    assert [reach(decoder[first:]) for first in range(4)] == [18, 7, 3, 1]
    assert [reach(encoder[:last]) for last in (1, 2, 3)] == [1, 2, 5]
    assert [level.width for level in decoder] == [512, 512, 512, 256]


def test_other_autoencoders_have_no_stages(tiny_mini):
    assert not has_levels(tiny_mini.vae)
    with torch.device("meta"):
        attending = {**SD21, "up_block_types": ("AttnUpDecoderBlock2D",) * 4}
        assert not has_levels(TimeAwareAutoencoderKL(**attending))


# ------------------------------------------------------------------------------------------------------- plan, memory


def test_ways_are_the_more_exact_the_more_memory(vae):
    for level in decoder_levels(vae)[1:]:
        held, kept = schedule.work(level, 10_000), schedule.layers_values(level, 10_000)
        assert kept < held
        assert schedule.choose_way(level, 10_000, held, 0) == "whole"
        assert schedule.choose_way(level, 10_000, held - 1, kept) == "layers"
        assert schedule.choose_way(level, 10_000, held - 1, kept - 1) == "tiles"


def test_attention_sees_the_whole_up_to_its_limit_whatever_the_memory(vae):
    first = decoder_levels(vae)[0]
    assert schedule.choose_way(first, schedule.WHOLE_CELLS, 0, 0) == "whole"
    assert schedule.choose_way(first, schedule.WHOLE_CELLS + 1, 1e15, 1e15) == "windows"


def test_predicted_memory_keeps_to_the_budget_and_stops_growing(vae):
    for network in every(vae):
        budget = 2e9
        small, large = (networks.predicted_memory(network, side, 2 * side, 64, budget, CPU) for side in (256, 1024))
        assert small <= budget
        assert large <= budget
        larger = networks.predicted_memory(network, 2048, 4096, 64, budget, CPU)
        assert larger == large


# ------------------------------------------------------------------------------------------------- windows


def test_windows_have_no_seam(vae, latents, monkeypatch):
    """Each attends to itself, so the result is not the untiled one; naive tiles are further off."""
    monkeypatch.setattr(schedule, "WHOLE_CELLS", 100)
    parts = {"WINDOW": 24, "WINDOW_OVERLAP": 8, "WINDOWS": part_by_part.Parts(16, 4, crop=16, margin=2)}
    for name, value in parts.items():
        monkeypatch.setattr(part_by_part, name, value)
    network = networks.decoder(vae)
    whole = network.call(latents)
    y = run_tiled(network, latents, TILE, 0, None, memory_for(network, "layers"))
    assert (y - whole).abs().mean() < (naive(network, latents) - whole).abs().mean()
    assert abs(border_energy(y, whole, 8) - 1) <= 0.02


def test_stages_are_the_autoencoder_also_with_attention_in_chunks(double, latents, picture, monkeypatch):
    for scores in (2**27, 50 * 8):
        monkeypatch.setattr(levels, "ATTENTION_SCORES", scores)
        for network, x in zip(every(double), (latents, picture, picture), strict=True):
            expected = network.call(x.double())
            torch.testing.assert_close(run_levels(network.levels, x.double()), expected, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------- determinism, progress, offloading


@pytest.mark.parametrize("way", ["layers", "tiles"])
def test_neither_batch_place_nor_history_changes_a_bit(vae, latents, way):
    network = networks.decoder(vae)
    memory = memory_for(network, way)
    alone = run_tiled(network, latents, TILE, 0, None, memory)
    both = run_tiled(network, torch.cat([latents.flip(3), latents]), TILE, 0, None, memory)
    assert torch.equal(both[1:], alone)
    assert torch.equal(run_tiled(network, latents.clone(), TILE, 0, None, memory), alone)
    assert alone.dtype == torch.float32


@pytest.mark.parametrize("way", ["layers", "tiles"])
@pytest.mark.parametrize("index", [0, 2])
def test_progress_counts_every_step_and_may_cancel(vae, latents, picture, way, index):
    network, x = every(vae)[index], latents if index == 0 else picture
    memory, seen = memory_for(network, way), []
    before = network.call(x)
    run_tiled(network, x, TILE, 0, lambda *step: seen.append(step), memory)
    assert seen == [(done + 1, len(seen)) for done in range(len(seen))]
    assert len(seen) >= 6

    def cancel(done: int, total: int) -> None:
        if done == total // 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_tiled(network, x, TILE, 0, cancel, memory)
    assert torch.equal(network.call(x), before)


@pytest.mark.parametrize("way", ["layers", "tiles"])
def test_bfloat16(vae, latents, way):
    half = TimeAwareAutoencoderKL.from_config(vae.config)
    half.load_state_dict(vae.state_dict())
    nn.Module.to(half, torch.bfloat16).eval()
    exact, network = networks.decoder(vae), networks.decoder(half)
    expected = run_tiled(exact, latents, TILE, 0, None, memory_for(exact, way))
    y = run_tiled(network, latents, TILE, 0, None, memory_for(network, way))
    assert y.dtype == torch.float32
    assert (y - expected).abs().mean() < 0.03 * expected.std()


def test_input_is_left_alone(vae, picture, latents):
    for network, x in zip(every(vae), (latents, picture, picture), strict=True):
        kept = x.clone()
        run_tiled(network, x, TILE, 0, None, memory_for(network, "layers"))
        assert torch.equal(x, kept)


@pytest.mark.parametrize("way", ["layers", "tiles"])
def test_weights_that_offloading_brings_layer_by_layer(vae, latents, way):
    accelerate = pytest.importorskip("accelerate")
    offloaded = TimeAwareAutoencoderKL.from_config(vae.config)
    offloaded.load_state_dict(vae.state_dict())
    settle(offloaded.eval())
    memory = memory_for(networks.decoder(vae), way)
    expected = run_tiled(networks.decoder(offloaded), latents, TILE, 0, None, memory)
    accelerate.cpu_offload(offloaded, CPU)
    assert next(offloaded.parameters()).device.type == "meta"
    y = run_tiled(networks.decoder(offloaded), latents, TILE, 0, None, memory)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)
