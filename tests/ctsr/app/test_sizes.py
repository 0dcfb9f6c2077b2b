"""How large results are, and what is said where a size does not fit its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctsr.app.sizes import Size, parse_box, parse_size


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, (1200, 1600)),
        ({"scale": 1.5}, (450, 600)),
        ({"size": (7, 9)}, (9, 7)),
        ({"size": (1000, None)}, (750, 1000)),
        ({"size": (None, 1000)}, (1000, 1333)),
        ({"fit": (1000, 600)}, (600, 800)),
        ({"fit": (1000, 900)}, (750, 1000)),
        ({"long_side": 1001}, (751, 1001)),
        ({"megapixels": 0.48}, (600, 800)),
        ({"megapixels": 12}, (3000, 4000)),
    ],
)
def test_of_a_picture_of_400x300(asked: dict[str, Any], wanted: tuple[int, int]) -> None:
    assert Size(**asked).of(300, 400) == wanted


def test_a_side_is_never_empty_and_never_leaves_its_box() -> None:
    assert Size(long_side=10).of(1, 1000) == (1, 10)
    assert Size(fit=(10, 10)).of(3, 1000) == (1, 10)
    for width in range(1, 60):
        height, result = Size(fit=(640, 480)).of(37, width)
        assert height <= 480
        assert result <= 640
        assert height == 480 or result == 640


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"scale": 2, "size": (3, 4)}, "--scale and --size exclude"),
        ({"long_side": 2, "megapixels": 1}, "--long-side and --megapixels exclude"),
        ({"scale": 0}, "positive number"),
        ({"scale": float("nan")}, "positive number"),
        ({"megapixels": 0}, "positive number"),
        ({"megapixels": 5000}, "positive number"),
        ({"long_side": 0}, "keep each side"),
        ({"fit": (70000, 5)}, "keep each side"),
        ({"size": (None, 70000)}, "keep each side"),
    ],
)
def test_what_cannot_be(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Size(**asked)


def test_sizes_as_they_are_written() -> None:
    assert parse_size("1920x1080") == (1920, 1080)
    assert parse_size("1920x") == (1920, None)
    assert parse_size(" x 1080") == (None, 1080)
    for text in ("x", "1920", "", "ax3", "-1x3"):
        with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
            parse_size(text)
    with pytest.raises(ValueError, match="both width and height"):
        parse_box("1920x")
    with pytest.raises(ValueError, match="of 1 or more"):
        parse_box("0x9")


def test_changed_proportions_are_said(caplog: pytest.LogCaptureFixture) -> None:
    Size(size=(1000, 1000)).warn_of_distortion(Path("a.png"), 300, 400)
    text = "--size 1000x1000 makes the picture (400x300) 25 % narrower; use --fit 1000x1000 to keep its proportions."
    assert caplog.messages == [f"a.png: {text}"]
    caplog.clear()
    for size in ((800, 600), (801, 600), (None, 10)):
        Size(size=size).warn_of_distortion(Path("a.png"), 300, 400)
    Size(fit=(10, 10)).warn_of_distortion(Path("a.png"), 300, 400)
    Size(size=(24, 16)).warn_of_distortion(Path("a.png"), 33, 50)  # rounded to whole pixels
    assert caplog.messages == []


def test_settings_say_what_was_asked() -> None:
    assert Size().settings() == {"scale": 4.0}
    assert Size(size=(None, 9)).settings() == {"size": "x9"}
    assert Size(fit=(3, 9)).settings() == {"fit": "3x9"}
    assert Size(long_side=9).settings() == {"long_side": 9}
    assert Size(megapixels=1.5).settings() == {"megapixels": 1.5}
