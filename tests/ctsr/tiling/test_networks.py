"""Networks of both kinds as functions that can be tiled."""

import logging
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctsr import CTSRPipeline, TileMemoryError
from ctsr.models import forward
from ctsr.models.building import ALIGNMENT, settle
from ctsr.tiling import heap, networks, tiled
from ctsr.tiling.memory import TILE_LADDER
from ctsr.tiling.network import ATTENTION_TILE, MOST_TILES, Network, choose_tile, tiles_at_once
from tests.tiled import run_tiled

CPU = torch.device("cpu")


@pytest.fixture(params=["tiny_mini", "tiny_sd"])
def pipeline(request: pytest.FixtureRequest) -> CTSRPipeline:
    return request.getfixturevalue(request.param)


def every(pipeline: CTSRPipeline) -> list[Network]:
    embeds = pipeline.prompt_embeddings(1) if pipeline.prompt_embeddings is not None else None
    return [
        networks.encoder(pipeline.vae, 500),
        networks.unet(pipeline.unet, 8, 999, embeds),
        networks.decoder(pipeline.vae),
    ]


def test_scales_are_those_of_the_networks(pipeline):
    channels = (3, 4, 4)
    for network, inputs in zip(every(pipeline), channels, strict=True):
        x = torch.rand(1, inputs, 4 * network.read_scale, 6 * network.read_scale)
        with torch.no_grad():
            y = network.call(x)
        assert y.shape[-2:] == (4 * network.write_scale, 6 * network.write_scale)


def test_halo_of_networks_that_are_tiled_and_stages_of_those_that_normalise(tiny_mini, tiny_sd):
    encoder, unet, decoder = every(tiny_sd)
    assert unet.halo is None
    assert (len(encoder.levels), len(unet.levels), len(decoder.levels)) == (4, 0, 4)
    assert encoder.halo in range(1, 8)
    assert decoder.halo in range(1, 8)
    encoder, unet, decoder = every(tiny_mini)
    assert not encoder.levels
    assert not decoder.levels
    assert encoder.halo * 8 >= tiny_mini.vae.encoder_halo
    assert unet.halo == tiny_mini.unet.halo
    assert decoder.halo * 8 >= tiny_mini.vae.decoder_halo
    assert (encoder.align, unet.align, decoder.align) == (1, 2, 1)


def test_stages_make_up_the_network(tiny_sd):
    for network, channels in zip(every(tiny_sd), (3, 0, 4), strict=True):
        if not network.levels:
            continue
        x = torch.rand(1, channels, 6 * network.read_scale, 4 * network.read_scale)
        with torch.no_grad():
            y = forward.prepared(network.module, x)
            for stage in network.levels:
                y = stage(y)
            assert torch.equal(y, network.call(x))


def test_tiles_in_words_and_their_memory(tiny_mini, tiny_sd):
    _, blended, staged = every(tiny_sd)
    halo = every(tiny_mini)[0]
    assert networks.describe_tiles(staged, 64, 64, None, 0) == "untiled"
    assert networks.describe_tiles(staged, 64, 64, 32, 1e12) == "untiled, in layers"
    assert networks.describe_tiles(staged, 64, 64, 32, 0) == "tiles of 256 pixels (normalised as one picture)"
    assert networks.describe_tiles(blended, 64, 64, 32, 0) == "tiles of 256 pixels (blended)"
    assert networks.describe_tiles(halo, 64, 64, 32, 0) == f"tiles of 256 pixels (halo {halo.halo * 8})"
    for network in (staged, blended, halo):
        untiled, tiled = (networks.predicted_memory(network, 640, 640, tile, 0, CPU) for tile in (None, 32))
        assert 0 < 20 * tiled < untiled
    assert networks.predicted_memory(halo, 8, 8, 32, 0, CPU) == networks.predicted_memory(halo, 8, 8, None, 0, CPU)


def test_results_are_fp32_channels_as_the_network_gives_them(pipeline):
    unet = every(pipeline)[1]
    z = torch.rand(1, 4, 16, 16)
    with torch.no_grad():
        out = run_tiled(unet, z, 8, 4, None)
    assert out.shape == (1, 12, 16, 16)
    assert out.dtype == torch.float32


def test_a_tile_asked_for_is_rounded_up_to_the_alignment(tiny_mini):
    unet = every(tiny_mini)[1]
    assert choose_tile(unet, 100, 100, 128, CPU) == 16
    assert choose_tile(unet, 100, 100, 136, CPU) == 18
    assert choose_tile(unet, 16, 12, 128, CPU) is None


def test_automatic_tiles_are_none_or_steps_of_the_ladder(pipeline):
    for network in every(pipeline):
        assert choose_tile(network, 4, 4, 0, CPU) is None
        assert choose_tile(network, 8192, 8192, 0, CPU) in TILE_LADDER


def test_automatic_tiles_with_attention_are_small_whatever_the_memory(tiny_sd):
    encoder, unet, _ = every(tiny_sd)
    side = ATTENTION_TILE
    assert choose_tile(unet, side, side, 0, CPU) is None
    assert choose_tile(unet, side // 2, 2 * side, 0, CPU) is None
    assert choose_tile(unet, side + 1, side, 0, CPU) == side
    assert choose_tile(unet, 8192, 8192, 0, CPU) <= side
    assert choose_tile(unet, 2 * side, 2 * side, 2 * side * 8, CPU) is None
    assert choose_tile(encoder, side + 1, side, 0, CPU) is None


@pytest.mark.parametrize("make", ["make_mini", "make_sd"])
def test_automatic_tiles_of_exact_networks_on_a_cpu_are_at_most_1024_pixels(make, request):
    pipeline = request.getfixturevalue(make)()
    for stage in ("encode", "unet", "decode"):
        network = pipeline.network(stage)
        side = 1024 // network.factor
        assert choose_tile(network, side, side, 0, CPU) in (None, ATTENTION_TILE)
        chosen = choose_tile(network, side + 1, side, 0, CPU)
        if make == "make_mini":
            assert chosen == side
            assert choose_tile(network, side + 1, side, 0, torch.device("meta")) is None
            assert choose_tile(network, 3 * side, side, 2048, CPU) == 2 * side  # as asked
        else:
            assert chosen in (None, ATTENTION_TILE)


def test_tiles_at_once_fill_a_gpu_within_its_memory(tiny_sd, tiny_mini):
    unet, cuda = every(tiny_sd)[1], torch.device("cuda")
    one = networks.predicted_memory(unet, 500, 500, 64, 0, CPU)
    for memory, batch in ((0, 1), (3.5 * one, 3), (100 * one, MOST_TILES)):
        assert tiles_at_once(unet, 500, 500, 64, memory, cuda) == batch
        assert networks.predicted_memory(unet, 500, 500, 64, memory, cuda) == batch * one
    assert tiles_at_once(unet, 500, 500, 64, 100 * one, CPU) == 1
    assert tiles_at_once(unet, 500, 500, None, 1e12, cuda) == 1
    assert tiles_at_once(every(tiny_mini)[1], 500, 500, 64, 1e12, cuda) == 1


@torch.no_grad()
def test_every_tile_of_a_batch_gets_its_picture_s_prompt(tiny_sd, monkeypatch):
    torch.manual_seed(0)
    prompts, z = torch.randn(2, 5, 16), torch.randn(2, 4, 24, 16)
    alone = [
        run_tiled(networks.unet(tiny_sd.unet, 8, 999, prompts[i : i + 1]), z[i : i + 1], 16, 8, None) for i in range(2)
    ]
    monkeypatch.setattr(tiled, "tiles_at_once", lambda *_: 2)
    batched = run_tiled(networks.unet(tiny_sd.unet, 8, 999, prompts), z, 16, 8, None)
    torch.testing.assert_close(batched, torch.cat(alone), rtol=0, atol=1e-5)
    assert (
        alone[0] - run_tiled(networks.unet(tiny_sd.unet, 8, 999, prompts[1:]), z[:1], 16, 8, None)
    ).abs().max() > 1e-4


def test_memory_in_fp32_is_twice_that_of_half_precision(tiny_mini):
    encoder = networks.encoder(tiny_mini.vae, None)
    assert encoder.in_fp32().bytes_per_pixel == encoder.bytes_per_pixel
    half = torch.nn.Module.to(type(tiny_mini.vae)(**networks_config(tiny_mini)), torch.bfloat16)
    assert networks.encoder(half, None).in_fp32().bytes_per_pixel == encoder.bytes_per_pixel


def networks_config(pipeline: CTSRPipeline) -> dict[str, object]:
    return {key: value for key, value in pipeline.vae.config.items() if not key.startswith("_")}


def test_prompt_width(tiny_mini, tiny_sd):
    assert networks.prompt_width(tiny_mini.unet) is None
    assert networks.prompt_width(tiny_sd.unet) == 16


def test_settled_weights_are_channels_last_aligned_and_the_same():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 8, 3)
    values = [parameter.detach().clone() for parameter in conv.parameters()]
    shifted = torch.empty(8 * 4 * 9 + 1)[1:]
    conv.weight.data = shifted.view(8, 4, 3, 3).copy_(conv.weight.data)
    settle(conv)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.data_ptr() % ALIGNMENT == 0
    assert all(torch.equal(a, b) for a, b in zip(values, conv.parameters(), strict=True))


@pytest.mark.parametrize(("name", "gives"), [("tiny_sd", True), ("tiny_mini", False)])
def test_what_large_tiles_leave_in_the_heap_is_given_back_before_the_next(name, gives, request, monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(heap, "give_back", lambda: events.append("given back"))
    for network, x in zip(every(request.getfixturevalue(name)), inputs_of(name, 192), strict=True):
        events.clear()
        with torch.no_grad():
            run_tiled(network, x, 16, 8, lambda done, total: events.append("told"))
        assert events.count("told") > 1
        assert events == ["given back", "told"] * (len(events) // 2) if gives else "given back" not in events


def inputs_of(name: str, side: int) -> list[torch.Tensor]:
    """For encoder, UNet and decoder."""
    latents = torch.zeros(1, 4, side // 8, side // 8)
    return [torch.zeros(1, 3, side, side), latents, latents]


# --- memory that runs out ---

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("not enough memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


class Short:
    """A network of one weight that runs out of memory for more than `limit` cells a side; notes what it was given."""

    def __init__(self, limit: int, error: Exception | None = None):
        self.limit, self.error, self.sides = limit, error or MemoryError(), list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.sides.append(max(x.shape[-2:]))
        if self.sides[-1] > self.limit:
            raise self.error
        return x + 1


def run_short(call: Callable[[Tensor], Tensor], side: int, tile: int = 0, free: Callable[[], None] | None = None):
    """Over side x side cells, in tiles of `tile` cells."""
    network = Network("unet", nn.Linear(1, 1), 8, call, 1, 1, halo=0, align=1, bytes_per_pixel=1)
    return tiled.run(network, torch.zeros(1, 1, side, side), CPU, free, tile=tile * 8)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_smaller_tiles_until_it_fits(error: Exception, caplog: pytest.LogCaptureFixture):
    call = Short(48, error)
    with caplog.at_level(logging.WARNING, logger="ctsr.tiling.memory"):
        assert torch.equal(run_short(call, 96), torch.ones(1, 1, 96, 96))
    assert call.sides == [96, *[48] * 4]  # tiles are equally long: two of 48 cells a side
    (message,) = [record.getMessage() for record in caplog.records]
    assert "untiled" in message
    assert "tiles of 64 cells" in message


def test_memory_is_freed_between_two_tries_and_at_no_other_time():
    call, events = Short(32), list[str]()
    run_short(call, 120, free=lambda: events.append(f"freed after {call.sides[-1]}"))
    assert events == ["freed after 120", "freed after 60", "freed after 60", "freed after 40"]  # 96, 64, 48
    assert call.sides[4:] == [30] * 16
    events.clear()
    run_short(Short(32), 120, tile=32, free=lambda: events.append("freed"))
    assert not events


def test_memory_is_freed_outside_of_the_handler():
    """While the error is handled, its traceback holds the tensors of the failed run."""
    handled: list[object] = []
    run_short(Short(32), 500, tile=64, free=lambda: handled.append(sys.exc_info()[0]))
    assert handled == [None, None]


@pytest.mark.parametrize(("tile", "side", "tries"), [(64, 500, 3), (256, 60, 3), (0, 30, 1), (20, 500, 1)])
def test_gives_up_below_the_smallest_step(tile: int, side: int, tries: int):
    call = Short(0)
    with pytest.raises(TileMemoryError, match="Out of memory even with"):
        run_short(call, side, tile)
    assert len(call.sides) == tries


def test_other_errors_are_not_retried():
    call = Short(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        run_short(call, 100)
    assert len(call.sides) == 1


def test_a_failed_run_is_freed_before_the_next():
    """The tensors of a failed run must not be alive, through its traceback, while the next one allocates."""
    alive: list[bool] = []

    class Tensors:
        held = 0

        def __init__(self):
            alive.append(Tensors.held > 0)
            Tensors.held += 1

        def __del__(self):
            Tensors.held -= 1

    def call(x: Tensor) -> Tensor:
        _big = Tensors()
        if x.shape[-1] > 32:
            raise MemoryError
        return x

    run_short(call, 64, tile=64)
    assert alive[:2] == [False, False]
