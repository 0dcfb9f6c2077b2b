"""Shards: what is packed, that an epoch is seen once whoever reads it, and resuming."""

import io
import logging
import tarfile
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from training.data.pairs import Pairs
from training.data.photos import is_held_back
from training.data.shard_writer import check_index, read_index, write
from training.data.shards import POSITIONS, ShardPairs, ShardSource, decode, resume_shard
from training.engine.run import Run

PAIRS = Pairs(crop=16, softness=0)
COUNT = 11


def level(sample: dict[str, torch.Tensor]) -> int:
    """The photographs are even: which one a sample is of."""
    return round(float((sample["sharp"].mean() + 1) * 127.5))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Even pictures of levels 10, 20, ..., one held back, one broken; names with dots, spaces and the same stem."""
    folder = tmp_path_factory.mktemp("photos")
    names = ["a.png", "a.jpg", "b.c.png", "a photo ü.png", "deep/er.png"]
    names += [f"{number}.png" for number in range(60) if not is_held_back(f"{number}.png")]
    train = [name for name in names if not is_held_back(name)][:COUNT]
    held_back = next(f"{number}.png" for number in range(60) if is_held_back(f"{number}.png"))
    (folder / "deep").mkdir()
    for number, name in enumerate([*train, held_back]):
        Image.new("RGB", (24, 20), (10 * number + 10,) * 3).save(folder / name)
    broken = next(f"broken{n}.jpg" for n in range(9) if not is_held_back(f"broken{n}.jpg"))
    (folder / broken).write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """11 photographs in 4 shards."""
    out = tmp_path_factory.mktemp("shards")
    write(photos, out, per_shard=3)
    return sorted(out.glob("*.tar"))


LEVELS = [10 * number + 10 for number in range(COUNT)]


def test_files_are_packed_unchanged_and_evenly_without_the_held_back(photos: Path, shards: list[Path]) -> None:
    packed: list[list[bytes]] = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            packed.append([tar.extractfile(member).read() for member in tar])
    assert sorted(len(shard) for shard in packed) == [2, 3, 3, 3]
    files = [path for path in photos.rglob("*.*") if not is_held_back(path.relative_to(photos).as_posix())]
    whole = {path.read_bytes() for path in files if not path.name.startswith("broken")}
    assert {member for shard in packed for member in shard} == whole


def test_unreadable_files_are_counted_and_named(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        write(photos, tmp_path / "out")
    assert "skipped 1 unreadable or too small: broken" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.tar", "held_back", "index.json"]


def test_nothing_is_written_over_or_made_of_nothing(photos: Path, shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="give an empty folder"):
        write(photos, shards[0].parent)
    with pytest.raises(FileNotFoundError, match="no photograph to train on"):
        write(tmp_path, tmp_path / "out")


def test_samples_are_like_those_of_pairs(shards: list[Path]) -> None:
    sample = next(iter(ShardPairs(shards, PAIRS, first_shard=7)))
    assert {key: tuple(x.shape) for key, x in sample.items()} == {
        "index": (),
        "timestep": (),
        "lr": (3, 4, 4),
        "soft": (3, 16, 16),
        "sharp": (3, 16, 16),
        "shard": (),
    }
    assert (sample["shard"].item(), sample["index"].item() // POSITIONS) == (7, 7)
    assert sample["index"].dtype == torch.int64


def test_an_epoch_shows_every_photograph_once_and_the_next_one_in_another_order(shards: list[Path]) -> None:
    samples = list(islice(ShardPairs(shards, PAIRS), 6 * COUNT))
    epochs = [samples[start : start + COUNT] for start in range(0, 6 * COUNT, COUNT)]
    orders = [[level(sample) for sample in epoch] for epoch in epochs]
    assert all(sorted(order) == LEVELS for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    shards_seen = [int(sample["shard"]) for sample in samples]
    assert shards_seen == sorted(shards_seen)
    assert len({int(sample["index"]) for sample in samples}) == len(samples)


def epoch_of(dataset: ShardPairs, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
    """A consumer's part of an epoch."""
    first = epoch * len(dataset.shards)
    for sample in dataset:
        if sample["shard"] >= first + len(dataset.shards):
            return
        if sample["shard"] >= first:
            yield sample


def test_two_ranks_share_an_epoch_and_see_the_same_samples_as_one(shards: list[Path]) -> None:
    for epoch in (0, 1):
        alone = {int(s["index"]): s for s in epoch_of(ShardPairs(shards, PAIRS), epoch)}
        parts = [list(epoch_of(ShardPairs(shards, PAIRS, rank, 2), epoch)) for rank in (0, 1)]
        assert all(parts)
        assert sorted(level(sample) for part in parts for sample in part) == LEVELS
        for sample in parts[0] + parts[1]:
            assert all(torch.equal(x, alone[int(sample["index"])][key]) for key, x in sample.items())


def test_another_seed_is_another_stream(shards: list[Path]) -> None:
    first, again, other = (
        [sample["lr"] for sample in islice(ShardPairs(shards, Pairs(crop=16, seed=seed)), 8)] for seed in (0, 0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("consumers", [1, 2, 3])
def test_resuming_loses_nothing_and_repeats_only_shards_in_flight(shards: list[Path], consumers: int) -> None:
    for taken in (1, 3, 4, 8):  # samples of each consumer before the stop
        streams = [iter(ShardPairs(shards, PAIRS, rank, consumers)) for rank in range(consumers)]
        before = [sample for stream in streams for sample in islice(stream, taken)]
        latest = dict.fromkeys(range(consumers), 0)
        for sample in before:
            k = int(sample["shard"])
            latest[k % consumers] = max(k, latest[k % consumers])
        first = resume_shard(latest)
        seen = {int(sample["index"]) for sample in before}
        after = {
            int(s["index"]) for epoch in (0, 1, 2) for s in epoch_of(ShardPairs(shards, PAIRS, 0, 1, first), epoch)
        }
        whole = {int(s["index"]) for epoch in (0, 1, 2) for s in epoch_of(ShardPairs(shards, PAIRS), epoch)}
        assert seen | after == whole
        assert {index // POSITIONS for index in seen & after} <= set(range(first, first + 2 * consumers))
        assert min(index // POSITIONS for index in after) == first


def test_small_and_unreadable_photographs_are_skipped_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        for name, size in (("small.png", 8), ("good.png", 20), ("broken.jpg", None), ("good2.PNG", 30)):
            path = tmp_path / name
            path.write_bytes(b"not a picture") if size is None else Image.new("RGB", (size, size)).save(path)
            tar.add(path, name)
    with caplog.at_level(logging.WARNING):
        samples = list(islice(ShardPairs([tmp_path / "foreign.tar"], PAIRS), 6))
    numbers = [int(sample["index"]) % POSITIONS for sample in samples]
    assert [sorted(numbers[i : i + 2]) for i in (0, 2, 4)] == [[1, 3], [1, 3], [1, 3]]
    assert [record.getMessage() for record in caplog.records] == [
        "skipped 1 so far, unreadable or too small: now foreign.tar/small",
        "skipped 2 so far, unreadable or too small: now foreign.tar/broken",
    ]


def test_a_crop_larger_than_every_photograph_is_an_error(shards: list[Path]) -> None:
    with pytest.raises(ValueError, match="no photograph of 32 px or more"):
        next(iter(ShardPairs(shards, Pairs(crop=32))))


def test_missing_shards_are_an_error(shards: list[Path]) -> None:
    for paths in ([*shards, "nowhere.tar"], []):
        with pytest.raises(FileNotFoundError, match=r"missing shards: (nowhere.tar|none given)"):
            ShardPairs(paths, PAIRS)


def test_the_index_tells_what_is_there_and_what_is_missing(photos: Path, tmp_path: Path) -> None:
    write(photos, tmp_path, per_shard=3)
    index = read_index(tmp_path)
    assert index.shards[0].name == "000000.tar"
    assert sum(shard.photographs for shard in index.shards) == COUNT
    check_index(tmp_path, index.shards)
    assert [path.name for path in (tmp_path / "held_back").iterdir()] == list(index.held_back)
    assert len(index.held_back) == 1
    (tmp_path / "000001.tar").write_bytes((tmp_path / "000001.tar").read_bytes()[:-512])
    (tmp_path / "000002.tar").unlink()
    with pytest.raises(ValueError, match=r"lacks 2 of its shards, .* copy again 000001\.tar, 000002\.tar"):
        check_index(tmp_path, index.shards)
    (tmp_path / "index.json").write_text('{"shards": [{}]}')
    with pytest.raises(ValueError, match="write the shards again"):
        read_index(tmp_path)


def test_several_crops_of_a_photograph_are_taken_and_those_of_a_shard_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{number}.png" for number in range(60) if not is_held_back(f"{number}.png")][:8]
    for number, name in enumerate(names):
        Image.linear_gradient("L").resize((64, 64)).point([8 * number + x // 64 for x in range(256)]).save(
            folder / name
        )
    write(folder, tmp_path / "shards")
    (shard,) = (tmp_path / "shards").glob("*.tar")
    samples = list(islice(ShardPairs([shard], PAIRS, crops=4), 32))
    numbers = [int(sample["index"]) for sample in samples]
    assert sorted(numbers) == list(range(32))
    photographs = [number // 4 for number in numbers]
    assert sum(a == b for a, b in pairwise(photographs)) < 12  # 24 where they are not mixed
    first = [sample["sharp"] for sample, photograph in zip(samples, photographs, strict=True) if photograph == 0]
    assert len({crop.numpy().tobytes() for crop in first}) > 1
    again = list(islice(ShardPairs([shard], PAIRS, crops=4), 32))
    assert all(torch.equal(a["lr"], b["lr"]) for a, b in zip(samples, again, strict=True))


def test_large_photographs_are_sometimes_decoded_at_half_size(tmp_path: Path) -> None:
    shades = Image.radial_gradient("L").resize((1200, 1100)).convert("RGB")
    for suffix, options in ((".jpg", {"quality": 95}), (".png", {})):
        data = io.BytesIO()
        shades.save(data, {".jpg": "JPEG", ".png": "PNG"}[suffix], **options)
        shapes = [decode(data.getvalue(), 64, np.random.default_rng(seed)).shape for seed in range(60)]
        assert set(shapes) == {(1100, 1200, 3), (550, 600, 3)}
        assert np.mean([shape[0] == 550 for shape in shapes]) == pytest.approx(0.3, abs=0.15)
        half = decode(data.getvalue(), 64, np.random.default_rng(next(s for s, x in enumerate(shapes) if x[0] == 550)))
        wanted = np.asarray(shades.resize((600, 550), Image.Resampling.LANCZOS)).astype(int)
        assert np.abs(half - wanted).mean() < 1
        assert decode(data.getvalue(), 1101, np.random.default_rng(0)) is None
        assert {decode(data.getvalue(), 600, np.random.default_rng(seed)).shape for seed in range(9)} == {shapes[0]}


@pytest.mark.parametrize("degradation", ["camera", "realesrgan"])
def test_shards_are_degraded_on_the_device_where_asked(shards: list[Path], tmp_path: Path, degradation: Any) -> None:
    pairs = Pairs(crop=16, degradation=degradation)
    run = Run(tmp_path, steps=1, batch=8, workers=0)
    batches = [
        source.on_device(next(source.batches(run, 0, {}, 0, 1)), torch.device("cpu"))
        for source in (ShardSource(shards, pairs, 2), ShardSource(shards, pairs, 2, on_device=True))
    ]
    workers, device = batches
    assert {name: x.shape for name, x in workers.items()} == {name: x.shape for name, x in device.items()}
    assert torch.equal(workers["index"], device["index"])
    assert torch.equal(workers["shard"], device["shard"])
    levels = [[round(float((x.mean() + 1) * 127.5)) for x in batch["sharp"]] for batch in batches]
    assert levels[0] == levels[1]  # of the same photographs, though not of the same crops


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_goes_on_where_all_consumers_have_been(shards: list[Path], tmp_path: Path, workers: int) -> None:
    run = Run(tmp_path, steps=1, batch=2, workers=workers)
    source = ShardSource(shards, PAIRS)
    seen: list[int] = []
    latest: dict[int, int] = {}
    for batch in islice(source.batches(run, 0, latest, 0, 1), 5):
        latest = dict(source.note_shards(batch))
        seen += batch["index"].tolist()
    assert latest.keys() == set(range(max(1, workers)))
    resumed = ShardSource(shards, PAIRS)
    again = next(resumed.batches(run, 5, latest, 0, 1))
    first = resume_shard(latest)
    assert first > 0
    assert int(again["shard"][0]) >= first
    assert {index // POSITIONS for index in seen} >= set(range(first))
    assert set(resumed.note_shards(again)) == latest.keys()
