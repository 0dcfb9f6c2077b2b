"""Photographs: the held-back part, what is skipped, and crops."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.photos import (
    MOST_HELD_BACK,
    Crop,
    cut,
    draw_crop,
    fingerprint,
    hash_of,
    held_back_names,
    is_held_back,
    load_photos,
    photo_paths,
    random_crop,
    read_photo,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures to train on, one held back, three that are no use."""
    names = [f"{number:02d}.png" for number in range(60)]
    chosen = [name for name in names if not is_held_back(name)][:2]
    for name in [*chosen, next(name for name in names if is_held_back(name))]:
        Image.new("RGB", (300, 260), "teal").save(tmp_path / name)
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (300, 200)).save(tmp_path / "deeper/small.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    whole = (tmp_path / chosen[0]).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_unreadable_and_small_pictures_are_counted_and_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        photos = load_photos(folder)
    assert (len(photos.train), len(photos.held_back)) == (2, 1)
    assert photos.skipped == ("broken.jpg", "cut.png", "deeper/small.jpg")
    assert "skipped 3" in caplog.text
    assert "deeper/small.jpg" in caplog.text


def test_a_picture_too_large_to_decode_is_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_photo(next(iter(photo_paths(folder).values()))) is None


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a folder of"):
        load_photos(tmp_path)


def test_a_twelfth_is_held_back() -> None:
    assert np.mean([is_held_back(str(number)) for number in range(6000)]) == pytest.approx(1 / 12, abs=0.015)


def test_however_many_photographs_the_held_back_ones_are_bounded() -> None:
    names = [f"{number}.jpg" for number in range(20000)]
    chosen = held_back_names(names)
    assert len(chosen) == MOST_HELD_BACK == 128
    assert held_back_names(reversed(names)) == chosen
    assert all(map(is_held_back, chosen))
    assert held_back_names(names[:600]) == sorted(filter(is_held_back, names[:600]), key=hash_of)


def test_of_a_folder_that_grows_nothing_held_back_was_trained_on_before() -> None:
    names = [f"{number}.jpg" for number in range(3000)]
    for count in range(100, 3000, 100):
        before, after = names[:count], names[: count + 100]
        trained_on = set(before) - set(held_back_names(before, most=20))
        assert not trained_on & set(held_back_names(after, most=20))


def test_a_limit_leaves_the_others_to_train_on(folder: Path) -> None:
    assert len(load_photos(folder, most=0).train) == 3
    assert not load_photos(folder, most=0).held_back


def test_machines_with_other_photographs_have_other_fingerprints(folder: Path) -> None:
    before = fingerprint(load_photos(folder))
    assert fingerprint(load_photos(folder)) == before
    Image.new("RGB", (300, 261), "teal").save(next(iter(photo_paths(folder).values())).parent / "another.png")
    assert fingerprint(load_photos(folder)) != before


def test_crops_stay_inside_and_vary() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    crops = [random_crop(picture, 40, np.random.default_rng(seed)) for seed in range(8)]
    assert {crop.shape for crop in crops} == {(40, 40, 3)}
    assert len({crop.tobytes() for crop in crops}) > 1


def test_a_crop_is_mirrored_then_turned() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    assert np.array_equal(cut(picture, Crop(3, 5, 8, 1, False, 0)), picture[3:11, 5:13])
    assert np.array_equal(cut(picture, Crop(3, 5, 8, 1, True, 1)), np.rot90(picture[3:11, 5:13][:, ::-1]))


def test_crops_of_large_pictures_are_sometimes_halved() -> None:
    draws = [draw_crop(1200, 1001, 64, np.random.default_rng(seed)) for seed in range(300)]
    assert np.mean([crop.step == 2 for crop in draws]) == pytest.approx(0.3, abs=0.08)
    assert all(draw_crop(1200, 1001, 64, np.random.default_rng(s), halve=False).step == 1 for s in range(20))
    even = np.full((128, 128, 3), 77, np.uint8)
    assert np.array_equal(cut(even, Crop(0, 0, 64, 2, False, 0)), even[:64, :64])


def test_a_crop_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="64 px does not fit in a picture of 100x60"):
        draw_crop(60, 100, 64, np.random.default_rng(0))
