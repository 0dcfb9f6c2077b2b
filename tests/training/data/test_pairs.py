"""Pairs: pure functions of their number, plain bicubic ones, the held-back ones, and pairs from folders."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ctsr import CTSRPipeline
from training.data.pairs import (
    SOFTEST,
    Pairs,
    bicubic,
    held_back_pairs,
    make_pair,
    paired_photos,
    soften,
    timestep_of,
    to_tensor,
)
from training.data.photos import Photos
from training.engine.sources import Sample
from training.model.one_step import OneStep


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Coloured blobs."""
    small = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    train = {f"{seed}.png": picture(96, 120, seed) for seed in range(3)}
    folder = tmp_path_factory.mktemp("held_back")
    for name, pixels in {"a.png": picture(96, 120, 10), "b.png": picture(50, 70, 11)}.items():
        Image.fromarray(pixels).save(folder / name)
    return Photos(train, {path.name: path for path in sorted(folder.iterdir())})


def equal(a: Sample, b: Sample) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", ["camera", "realesrgan", "mix"])
def test_pairs_are_functions_of_seed_and_number(photos: Photos, kind: str) -> None:
    pairs = Pairs(crop=64, degradation=kind)
    first, again, other = (make_pair(photos, pairs, index) for index in (4, 4, 5))
    assert equal(first, again)
    assert not torch.equal(first["lr"], other["lr"])
    assert not torch.equal(first["lr"], make_pair(photos, replace(pairs, seed=1), 4)["lr"])


def test_shapes_and_ranges(photos: Photos) -> None:
    sample = make_pair(photos, Pairs(crop=64), 2**40)
    assert sample["index"].item() == 2**40
    assert sample["index"].dtype == torch.int64
    shapes = {key: tuple(sample[key].shape) for key in ("lr", "soft", "sharp")}
    assert shapes == {"lr": (3, 16, 16), "soft": (3, 64, 64), "sharp": (3, 64, 64)}
    assert all(sample[key].dtype == torch.float32 and sample[key].abs().max() <= 1 for key in shapes)


def test_softness_blurs_what_the_lr_is_made_from(photos: Photos) -> None:
    hard = make_pair(photos, Pairs(crop=64, softness=0), 1)
    assert torch.equal(hard["soft"], hard["sharp"])
    rough = [float(make_pair(photos, Pairs(crop=64, softness=3), i)["soft"].diff(dim=2).abs().mean()) for i in range(8)]
    sharp = [float(make_pair(photos, Pairs(crop=64), i)["sharp"].diff(dim=2).abs().mean()) for i in range(8)]
    assert np.mean(rough) < 0.95 * np.mean(sharp)


def test_plain_bicubic_pairs(photos: Photos) -> None:
    sample = make_pair(photos, Pairs(crop=64, bicubic_share=1), 3)
    assert torch.equal(sample["soft"], sample["sharp"])
    pixels = ((sample["sharp"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert torch.equal(sample["lr"], to_tensor(bicubic(pixels)))
    plain = [make_pair(photos, Pairs(crop=16, bicubic_share=0.5, softness=9), i) for i in range(60)]
    of_sharp = [torch.equal(sample["soft"], sample["sharp"]) for sample in plain]
    assert 0.4 < np.mean(of_sharp) < 0.85  # half, and a quarter of the others


@pytest.mark.parametrize("crop", [0, -16, 100])
def test_a_crop_that_no_whole_latents_cover_is_an_error(crop: int) -> None:
    with pytest.raises(ValueError, match="give a multiple of 16"):
        Pairs(crop=crop)


@pytest.mark.parametrize("softness", [-1.0, float("nan"), float("inf")])
def test_a_softness_that_is_no_sigma_is_refused(softness: float) -> None:
    with pytest.raises(ValueError, match="give a sigma of 0 px or more"):
        Pairs(softness=softness)


def test_held_back_pairs_have_at_least_the_softness_asked(photos: Photos) -> None:
    for pair in held_back_pairs(photos, Pairs(softness=2.0), size=48, least_softness=2.0):
        sharp = ((pair["sharp"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        assert torch.equal(pair["soft"], to_tensor(soften(sharp, 2.0)))


def test_held_back_pairs_refuse_what_cannot_be_made(photos: Photos) -> None:
    with pytest.raises(ValueError, match="size is 8: give 16 px or more"):
        held_back_pairs(photos, Pairs(), size=8)
    for least in (-0.5, 1.5):
        with pytest.raises(ValueError, match=f"least softness is {least}: give one from 0 to 1.0 px"):
            held_back_pairs(photos, Pairs(), least_softness=least)


def test_held_back_pairs_are_fixed_whatever_the_degradation_trained_on(photos: Photos) -> None:
    first = held_back_pairs(photos, Pairs(degradation="camera"), size=64)
    again = held_back_pairs(photos, Pairs(degradation="realesrgan", bicubic_share=1), size=64)
    assert [tuple(pair["sharp"].shape) for pair in first] == [(3, 64, 64), (3, 48, 48)]
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0]["sharp"], to_tensor(picture(96, 120, 10)[16:80, 28:92]))


def test_held_back_pairs_are_dealt_out_and_what_is_no_use_is_named(
    photos: Photos, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "aa.png").write_bytes(b"not a picture")
    more = replace(photos, held_back={**photos.held_back, "aa.png": tmp_path / "aa.png"}, min_side=16)
    whole = held_back_pairs(more, Pairs(), size=48)
    assert [int(pair["index"]) for pair in whole] == [0, 2]
    assert "skipped 1 unreadable or too small: aa.png" in caplog.text
    parts = [pair for rank in range(4) for pair in held_back_pairs(more, Pairs(), size=48, rank=rank, world=4)]
    assert all(equal(a, b) for a, b in zip(parts, whole, strict=True))
    assert len(held_back_pairs(replace(more, min_side=64), Pairs(), size=48)) == 1


@pytest.mark.parametrize("size", [(333, 500), (300, 257)])
def test_every_network_takes_the_pair_of_a_photograph_of_any_size(
    size: tuple[int, int],
    make_mini: Callable[..., CTSRPipeline],
    make_sd: Callable[..., CTSRPipeline],
    tmp_path: Path,
) -> None:
    Image.fromarray(picture(*size, 0)).save(tmp_path / "a.png")
    (pair,) = held_back_pairs(Photos({}, {"a.png": tmp_path / "a.png"}), Pairs())
    assert pair["sharp"].shape[1] >= min(size) - 15
    for pipeline in (make_mini(), make_sd()):
        model = OneStep(pipeline)
        with torch.no_grad():
            assert model.decode(model(pair["lr"][None]).z0).shape[1:] == pair["sharp"].shape


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures of which each LR pixel is a block of 4x4 px of the truth; the restorer's are negatives."""
    for name in ("lr", "target", "hr"):
        (tmp_path / name / "set").mkdir(parents=True)
    for number, size in enumerate(((20, 16), (18, 30))):
        lr = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
        hr = lr.repeat(4, 0).repeat(4, 1)
        Image.fromarray(lr).save(tmp_path / f"lr/set/{number}.png")
        Image.fromarray(255 - hr).save(tmp_path / f"target/set/{number}.png")
        Image.fromarray(hr).save(tmp_path / f"hr/set/{number}.webp", lossless=True)
    return tmp_path


def test_crops_of_folders_are_aligned(folders: Path) -> None:
    paired = paired_photos(folders / "lr", folders / "target", folders / "hr")
    samples = [paired.make(index, crop=32, seed=3) for index in range(12)]
    for index, sample in enumerate(samples):
        assert sample["index"] == index
        assert sample["lr"].shape == (3, 8, 8)
        assert torch.equal(sample["sharp"], sample["lr"].repeat_interleave(4, 1).repeat_interleave(4, 2))
        assert torch.allclose(sample["soft"], -sample["sharp"], atol=1e-6)
    assert len({sample["lr"].numpy().tobytes() for sample in samples}) > 6
    assert equal(samples[5], paired.make(5, crop=32, seed=3))
    assert not equal(samples[5], paired.make(5, crop=32, seed=4))


def test_without_truth_the_restorers_picture_is_the_sharp_one(folders: Path) -> None:
    sample = paired_photos(folders / "lr", folders / "target").make(0, crop=64)
    assert torch.equal(sample["sharp"], sample["soft"])
    assert torch.allclose(sample["sharp"], -sample["lr"].repeat_interleave(4, 1).repeat_interleave(4, 2), atol=1e-6)


def test_a_realistic_restorers_pictures_lie_beside_the_faithful_ones(folders: Path) -> None:
    paired = paired_photos(folders / "lr", folders / "hr", folders / "hr", folders / "target")
    sample = paired.make(0, crop=32)
    assert torch.equal(sample["soft"], sample["sharp"])
    assert torch.allclose(sample["realistic"], -sample["sharp"], atol=1e-6)
    assert "realistic" not in paired_photos(folders / "lr", folders / "target", folders / "hr").make(0, crop=32)


def test_a_missing_stem_is_an_error_that_names_it(folders: Path) -> None:
    (folders / "target/set/1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"target lacks 1 pictures of .*: set/1"):
        paired_photos(folders / "lr", folders / "target")


def test_a_folder_without_pictures_is_an_error(folders: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no picture under"):
        paired_photos(folders / "lr", folders / "nowhere")


def test_two_files_of_one_stem_are_an_error_that_names_both(folders: Path) -> None:
    Image.new("RGB", (64, 80)).save(folders / "target/set/0.jpg")
    with pytest.raises(ValueError, match=r"set/0\.jpg and 0\.png have the same name but for the suffix"):
        paired_photos(folders / "lr", folders / "target")


def test_a_size_that_is_not_4_times_the_lr_is_an_error(folders: Path) -> None:
    Image.new("RGB", (64, 81)).save(folders / "target/set/0.png")
    with pytest.raises(ValueError, match=r"0\.png is 64x81 px, but 4 times its LR is 64x80"):
        paired_photos(folders / "lr", folders / "target")


def test_unreadable_rows_are_skipped_and_named(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folders / "target/set/0.png").write_bytes(b"not a picture")
    with caplog.at_level(logging.WARNING):
        paired = paired_photos(folders / "lr", folders / "target", folders / "hr")
    assert paired.skipped == ("set/0",)
    assert [row.name for row in paired.rows] == ["set/1"]
    assert "skipped 1 of which a picture cannot be read: set/0" in caplog.text
    (folders / "hr/set/1.webp").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no readable pair"):
        paired_photos(folders / "lr", folders / "target", folders / "hr")


@pytest.mark.parametrize("crop", [30, 68])
def test_a_crop_that_folders_do_not_allow_is_an_error(folders: Path, crop: int) -> None:
    with pytest.raises(ValueError, match="give a multiple of 4 up to 64, as set/0 allows"):
        paired_photos(folders / "lr", folders / "target").make(0, crop=crop)


def test_the_timestep_says_how_soft_the_ground_truth_is(photos: Photos) -> None:
    crisp = make_pair(photos, Pairs(crop=64, softness=0.0), 3)
    assert int(crisp["timestep"]) == 999
    assert torch.equal(crisp["soft"], crisp["sharp"])
    rows = [make_pair(photos, Pairs(crop=64, softness=SOFTEST), index) for index in range(24)]
    details = [float(row["soft"].diff(dim=2).std() / row["sharp"].diff(dim=2).std()) for row in rows]
    order = np.corrcoef([int(row["timestep"]) for row in rows], details)[0, 1]
    assert order > 0.8, "a lower timestep goes with a softer ground truth"


@pytest.mark.parametrize(("sigma", "timestep"), [(0.0, 999), (SOFTEST / 3, 666), (SOFTEST, 0), (2 * SOFTEST, 0)])
def test_the_timestep_falls_linearly_with_the_blur(sigma: float, timestep: int) -> None:
    assert timestep_of(sigma) == timestep
