"""A plan names the tiles that run, counts a whole batch, refuses what memory cannot hold, and keeps measured speeds."""

import json

import psutil
import pytest
import torch

from ctsr.runtime import speed
from ctsr.runtime.cost import duration, gib


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CTSR_CACHE", str(tmp_path))
    return tmp_path / "speed.json"


@pytest.mark.parametrize("build", ["tiny_mini", "tiny_sd"])
@pytest.mark.parametrize(("tile", "tile_overlap"), [(0, None), (128, None), (128, 0), (256, 64), (256, 200)])
def test_tiles_of_a_plan_are_those_that_run(request, build, tile, tile_overlap):
    pipe = request.getfixturevalue(build)
    done = dict[str, list[int]]()
    picture = torch.rand(1, 3, 50, 70)
    options = {"generator": torch.Generator()} if pipe.family.needs_seed else {}
    pipe(
        picture,
        output_type="pt",
        tile=tile,
        tile_overlap=tile_overlap,
        callback=lambda stage, i, n: done.setdefault(stage, []).append(n),
        **options,
    )
    plan = pipe.plan([(200, 280)], tile, with_time=False, tile_overlap=tile_overlap)
    assert {stage.stage for stage in plan.stages} == done.keys()
    for stage in plan.stages:
        if not pipe.network(stage.stage).levels:  # Stable Diffusion's autoencoder counts steps of layers
            assert stage.tiles == done[stage.stage][0], stage
        assert stage.work > 0


def test_memory_grows_with_the_picture_and_a_kept_batch_counts_whole(tiny_mini):
    def need(sizes, keep):
        return tiny_mini.plan(sizes, keep=keep, with_time=False).machine.need

    one = need([(512, 512)], False)
    assert need([(1024, 1024)], False) == pytest.approx(4 * one, rel=0.01)
    assert need([(512, 512)] * 10, False) == one
    assert need([(512, 512)] * 10, True) == one + 10 * 512 * 512 * 12
    assert need([(256, 256), (512, 512)], False) == one


def test_a_batch_of_forty_times_8192_is_refused_at_once(tiny_mini, monkeypatch):
    monkeypatch.setattr("ctsr.runtime.cost.total_memory", lambda device: 24 * 2**30)
    plan = tiny_mini.plan([(8192, 8192)] * 40, with_time=False)
    assert plan.refusal is not None
    assert "40 results of up to 8192x8192 would take 30.0 GiB" in plan.refusal
    assert "do at most 20 at a time" in plan.refusal
    assert tiny_mini.plan([(8192, 8192)] * 20, with_time=False).refusal is None
    assert tiny_mini.plan([(8192, 8192)] * 40, keep=False, with_time=False).refusal is None, "written one by one"


def test_one_picture_that_is_too_large_is_refused(monkeypatch, tiny_mini):
    monkeypatch.setattr("ctsr.runtime.cost.total_memory", lambda device: 2 * 2**30)
    assert "choose a smaller size" in str(tiny_mini.plan([(16384, 16384)], with_time=False).refusal)


def test_what_is_not_free_now_is_a_warning(monkeypatch, tiny_mini):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20, "total": 2**34})())
    plan = tiny_mini.plan([(512, 512)], with_time=False)
    assert plan.refusal is None
    assert "not free now" in str(plan.warning)
    assert "not free now" in str(plan)


def test_speeds_are_measured_once_and_kept(tiny_mini, cache, monkeypatch):
    first = tiny_mini.plan([(256, 256)] * 3)
    assert first.seconds is not None
    assert first.seconds > 0
    stored = json.loads(cache.read_text())
    assert len(stored) == 3
    monkeypatch.setattr(speed, "measure", lambda network: pytest.fail("measured again"))
    assert tiny_mini.plan([(256, 256)] * 3).seconds == pytest.approx(first.seconds)
    assert tiny_mini.plan([(256, 256)] * 6).seconds == pytest.approx(2 * first.seconds)


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', '{"a": 3e9}', "{"])
def test_a_damaged_cache_is_measured_anew(tiny_mini, cache, content):
    cache.write_text(content)
    assert tiny_mini.plan([(64, 64)]).seconds
    assert len(json.loads(cache.read_text())) == 3


def test_one_damaged_entry_costs_no_other(tiny_mini, cache):
    tiny_mini.plan([(64, 64)])
    kept = json.loads(cache.read_text())
    cache.write_text(json.dumps({"a": 3e9, "b": [0, float("inf")], **kept}))
    assert speed.read(cache) == {key: tuple(value) for key, value in kept.items()}


def test_a_cache_that_cannot_be_written_is_no_error(tiny_mini, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CTSR_CACHE", str(tmp_path / "file"))
    assert tiny_mini.plan([(64, 64)]).seconds


def test_operations_are_counted_without_running(tiny_mini, tiny_sd):
    network = tiny_mini.network("unet")
    assert speed.operations(network, 32, 32) == pytest.approx(4 * speed.operations(network, 16, 16))
    attending = tiny_sd.network("unet")
    small, large = (speed.operations(attending, side, side) for side in (16, 32))
    assert large > 4 * small, "attention grows faster than the area"


def test_measured_speed_gives_the_time_it_was_measured_from(tiny_mini):
    network, ticks = tiny_mini.network("unet"), iter(range(10**6))
    found = speed.measure(network, lambda: next(ticks))  # every run takes one second
    cells = 2 * speed.FIRST_SIDE // network.factor
    assert found.seconds(cells, cells) == pytest.approx(1)
    assert found.start == pytest.approx(0.5), "at most half of a run is said to be its start"


def test_reading_the_weights_is_told_from_computing(tiny_mini, monkeypatch):
    network = tiny_mini.network("unet")
    rate = 2 * speed.operations(network, 16, 16)

    def fastest(network, cells, clock):
        return 0.3 + speed.operations(network, cells, cells) / rate

    monkeypatch.setattr(speed, "fastest", fastest)
    found = speed.measure(network)
    assert found.start == pytest.approx(0.3)
    assert found.rate == pytest.approx(rate)


@pytest.mark.parametrize(("sizes", "message"), [([], "sizes is empty"), ([(0, 5)], "0 pixels|keep each side")])
def test_sizes_that_cannot_be_are_refused(tiny_mini, sizes, message):
    with pytest.raises(ValueError, match=message):
        tiny_mini.plan(sizes)


def test_numbers_in_words():
    assert gib(300 * 2**20) == "300 MiB"
    assert gib(3 * 2**30) == "3.0 GiB"
    assert [duration(x) for x in (0.01, 5, 61, 600, 9000)] == [
        "about 0.1 s",
        "about 5.0 s",
        "about 61 s",
        "about 10 min",
        "about 2.5 h",
    ]
