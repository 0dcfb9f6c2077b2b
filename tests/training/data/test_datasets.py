"""Where batches come from: the folder, by workers or on the device, or shards of it."""

import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from training.data.datasets import Data, batches_of_one, mini_data, open_photos, open_source, sd21_data, taught_source
from training.data.pairs import Pairs, make_pair
from training.data.photos import load_photos
from training.data.shard_writer import write
from training.data.shards import POSITIONS
from training.engine.run import Run
from training.engine.sources import Sample


@pytest.fixture
def data(photos: Path) -> Data:
    return Data(photos, pairs=Pairs(crop=32))


def first_batch(data: Data, run: Run) -> Sample:
    source = open_source(data, open_photos(data)[0])
    return source.on_device(next(source.batches(run, 0, {}, 0, 1)), torch.device("cpu"))


def test_a_folder_gives_pairs_by_number(data: Data, make_run: Callable[..., Run], tmp_path: Path) -> None:
    batch = first_batch(data, make_run(tmp_path, batch=2))
    expected = [make_pair(open_photos(data)[0], data.pairs, number) for number in (0, 1)]
    assert batch["index"].tolist() == [0, 1]
    for name in ("lr", "soft", "sharp"):
        assert torch.equal(batch[name], torch.stack([pair[name] for pair in expected]))


def test_on_the_device_the_crops_are_the_same(data: Data, make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run(tmp_path, batch=2)
    workers, device = first_batch(data, run), first_batch(replace(data, degrade_on="device"), run)
    assert device["lr"].shape == workers["lr"].shape == (2, 3, 8, 8)
    assert torch.equal(device["index"], workers["index"])
    assert torch.equal(device["sharp"], workers["sharp"])


def test_a_folder_of_shards_is_trained_on_and_scored_on_without_the_photographs(
    data: Data, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    write(data.photos, tmp_path / "shards", per_shard=2)
    whole = open_photos(data)
    shards = replace(data, photos=tmp_path / "shards", degrade_on="device")
    photos, pairs = open_photos(shards)
    assert not photos.train
    assert len(pairs) == len(whole[1]) == 1
    assert all(torch.equal(x, whole[1][0][name]) for name, x in pairs[0].items())
    batch = first_batch(shards, make_run(tmp_path, batch=8))
    assert batch["sharp"].shape == (8, 3, 32, 32)
    assert len(set((batch["index"] % POSITIONS // shards.crops).tolist())) < 8  # several crops of each
    next((tmp_path / "shards").glob("*.tar")).unlink()
    with pytest.raises(ValueError, match="lacks 1 of its shards"):
        open_source(shards, photos)


def test_no_crops_of_a_photograph_are_an_error(data: Data) -> None:
    with pytest.raises(ValueError, match="crops is 0: give 1 or more"):
        replace(data, crops=0)


def test_shards_give_pairs_with_the_number_of_their_shard(
    data: Data, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    write(data.photos, tmp_path / "shards", per_shard=2)
    batch = first_batch(replace(data, shards=str(tmp_path / "shards" / "*.tar")), make_run(tmp_path, batch=2))
    assert batch["sharp"].shape == (2, 3, 32, 32)
    assert batch["shard"].shape == (2,)


def test_a_pattern_that_matches_nothing_is_an_error_whose_command_writes_shards(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(data, shards=str(tmp_path / "*.tar"))
    with pytest.raises(FileNotFoundError, match="write some with `python -m ") as error:
        open_source(wrong, open_photos(data)[0])
    _, _, module, *words = str(error.value).split("`")[1].split()
    places = {"PHOTOS": str(data.photos), "SHARDS": str(tmp_path)}
    monkeypatch.setattr(sys, "argv", [module, *(places.get(word, word) for word in words)])
    monkeypatch.delitem(sys.modules, module)
    runpy.run_module(module, run_name="__main__")
    open_source(wrong, open_photos(data)[0])


def test_one_pair_is_held_back_of_every_photograph_that_is(data: Data) -> None:
    photos, pairs = open_photos(data)
    assert (len(photos.train), len(photos.held_back), len(pairs)) == (3, 1, 1)
    (sample,) = batches_of_one(pairs, nn.Linear(1, 1))
    assert sample["sharp"].shape == (1, 3, 272, 272)
    assert sample["index"].shape == (1,)


def test_beside_shards_only_the_held_back_photographs_are_in_memory(data: Data) -> None:
    photos, pairs = open_photos(replace(data, shards="*.tar"))
    assert (len(photos.train), len(photos.held_back), len(pairs)) == (0, 1, 1)
    assert photos.skipped == ()  # nobody looked at the broken one


def test_a_folder_of_which_nothing_is_held_back_is_an_error(data: Data, tmp_path: Path) -> None:
    for name in load_photos(data.photos).train:
        (tmp_path / name).symlink_to(data.photos / name)
    with pytest.raises(ValueError, match="held back"):
        open_photos(replace(data, photos=tmp_path))


def test_the_recipes_data() -> None:
    assert (mini_data().pairs.crop, mini_data().pairs.degradation) == (128, "mix")
    assert (sd21_data().pairs.crop, sd21_data().pairs.degradation) == (512, "realesrgan")
    assert sd21_data().pairs.softness == 0


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_restorers_pictures_are_the_share_that_was_asked_for_and_photographs_their_own_aim(
    data: Data, make_run: Callable[..., Run], tmp_path: Path, share: float
) -> None:
    names = ("lr", "hr", "realistic", "faithful")
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8) if name == "lr" else (32, 32), (60 * number, 0, 0)).save(tmp_path / name / "one.png")
    lr, hr, realistic, faithful = (tmp_path / name for name in names)
    source = taught_source(data, load_photos(data.photos), (lr, hr, realistic, faithful), share)
    batches = list(source.batches(make_run(tmp_path, batch=4, steps=8), 0, {}, 0, 1))
    taught = 0
    for batch in batches:
        for soft, sharp, real, true, step in zip(
            *(batch[key] for key in ("soft", "sharp", "realistic", "faithful", "timestep")), strict=True
        ):
            if torch.equal(real, soft) and torch.equal(true, soft):
                continue
            taught += 1
            assert int(step) == 999
            colours = [round(float((x[0].mean() + 1) * 127.5)) for x in (soft, sharp, real, true)]
            assert colours == [60, 60, 120, 180]
    assert abs(taught / 32 - share) <= (0.25 if share == 0.5 else 0)


def test_what_cannot_be_mixed_with_taught_pictures_is_refused(data: Data, tmp_path: Path) -> None:
    folders = (tmp_path, tmp_path, tmp_path, tmp_path)
    with pytest.raises(ValueError, match="from 0 to 1"):
        taught_source(data, load_photos(data.photos), folders, 1.5)
    with pytest.raises(ValueError, match="--taught-share 1"):
        taught_source(replace(data, degrade_on="device"), load_photos(data.photos), folders, 0.5)
    with pytest.raises(ValueError, match="--taught-share 1"):
        taught_source(data, load_photos(data.photos, training=False), folders, 0.5)
