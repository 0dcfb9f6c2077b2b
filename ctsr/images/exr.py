"""OpenEXR by its own library (extra `exr`): floating-point pictures of linear light.

In memory they are encoded as sRGB (IEC 61966-2-1), as the networks know pictures; the file's numbers are linear, its
colours multiplied by alpha.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from ..errors import ImageReadError
from .deep import straight
from .optional_formats import EXR
from .picture import Samples
from .srgb import DARK, DARK_ENCODED, GAIN, GAMMA, OFFSET, SLOPE

SETTINGS = "ctsr"
"""Of the header's attribute with the settings of a result."""
_GROUPS = ("RGBA", "RGB", "Y")


def exr_works() -> bool:
    """Whether the library is installed."""
    return find_spec(EXR.module) is not None


def read_exr(path: Path) -> Samples:
    """float32 [H, W, 1, 3 or 4], sRGB, straight alpha; raises ImageReadError for a file without RGB or Y."""
    with EXR.load(path).File(str(path)) as file:
        channels: dict[str, Any] = file.channels()
        name = next((name for name in _GROUPS if name in channels), None)
        if name is None or channels[name].pixels.dtype.kind != "f":
            raise ImageReadError(f"{path} has no floating-point RGB or Y (it has {', '.join(channels)}): export these.")
        pixels = np.array(channels[name].pixels, np.float32)
    samples = pixels.reshape(*pixels.shape[:2], -1)
    if samples.shape[2] == 4:
        samples = straight(samples)
    samples[..., :3] = encoded(samples[..., :3])
    return samples


def write_exr(file: IO[bytes], samples: Samples, half: bool, settings: str) -> None:
    """float32 [H, W, 1 to 4], sRGB, straight alpha, as half or single floats, compressed without loss."""
    light = linear(samples)
    if samples.shape[2] in (2, 4):
        light[..., -1] = samples[..., -1]
        light[..., :-1] *= samples[..., -1:]
    pixels = np.ascontiguousarray(light, np.float16 if half else np.float32)
    if samples.shape[2] < 3:
        channels = {name: pixels[..., number].copy() for number, name in enumerate("YA"[: samples.shape[2]])}
    else:
        channels = {"RGBA"[: samples.shape[2]]: pixels}
    library = EXR.load(Path("the result"))
    header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
    header |= {SETTINGS: settings} if settings else {}
    with TemporaryDirectory() as folder:  # the library writes to a name alone
        path = Path(folder) / "picture.exr"
        library.File(header, channels).write(str(path))
        file.write(path.read_bytes())


def read_exr_settings(path: Path) -> str:
    """The settings in the header of a result; raises RuntimeError or KeyError where there are none."""
    with EXR.load(path).File(str(path), header_only=True) as file:
        return file.header()[SETTINGS]


def exr_is_whole(path: Path) -> bool:
    """Whether all pixels can be read; raises RuntimeError where not."""
    with EXR.load(path).File(str(path)) as file:
        return bool(file.channels())


def encoded(light: Samples) -> Samples:
    """Linear light as sRGB, [...] to [...]; 1 stays 1, and what is brighter or negative stays so."""
    bright = GAIN * np.maximum(light, DARK) ** (1 / GAMMA) - OFFSET
    return np.where(light <= DARK, SLOPE * light, bright)


def linear(colours: Samples) -> Samples:
    """Undoes `encoded`."""
    bright = ((np.maximum(colours, DARK_ENCODED) + OFFSET) / GAIN) ** GAMMA
    return np.where(colours <= DARK_ENCODED, colours / SLOPE, bright)
