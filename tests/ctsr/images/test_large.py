"""Pictures beyond Pillow's limit: results of camera pictures are, and must be known again."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ctsr.images.large import most_pixels, pixel_limit
from ctsr.images.metadata import SETTINGS_KEY
from ctsr.images.settings import is_whole, read_settings

GIB = 2**30


def test_a_result_beyond_pillows_limit_is_known_again(tmp_path: Path) -> None:
    settings = PngInfo()
    settings.add_text(SETTINGS_KEY, '{"ctsr": "0.1.0", "t": 0.5}')
    path = tmp_path / "large.png"
    Image.new("1", (14_000, 13_000)).save(path, pnginfo=settings, compress_level=1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path)
    assert read_settings(path) == {"ctsr": "0.1.0", "t": 0.5}
    assert is_whole(path)


@pytest.mark.parametrize(("memory", "pixels"), [(8, 179), (64, 1431)])
def test_the_largest_picture_is_as_the_memory(monkeypatch: pytest.MonkeyPatch, memory: int, pixels: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=memory * GIB))
    assert most_pixels() // 10**6 == pytest.approx(pixels, abs=1)


def test_the_limit_is_pillows_own_again_afterwards() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pixel_limit(None):
        assert Image.MAX_IMAGE_PIXELS is None
    assert before == Image.MAX_IMAGE_PIXELS
