"""Options of the commands, and what they become: settings, a model, devices.

What needs torch is imported inside the functions, so that `--help` need not wait for it.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    import torch

    from ..images.color_fix import ColorFix
    from ..images.formats import Encoding
    from ..images.picture import Bits
    from ..precision import Precision
    from .lazy_pipeline import LazyPipeline
    from .options import Options
    from .sizes import Size


class PrecisionName(str, Enum):
    """What the networks compute in."""

    _value_: Precision

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class FilePrecisionName(str, Enum):
    """What the weights in a file are."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class ColorFixName(str, Enum):
    """How colours are taken from the original."""

    _value_: ColorFix

    none = "none"
    wavelet = "wavelet"
    adain = "adain"
    lab = "lab"


Into = Literal["pictures", "tar", "parquet"]


class IntoName(str, Enum):
    """What results of `ctsr batch` are put into."""

    _value_: Into

    pictures = "pictures"
    tar = "tar"
    parquet = "parquet"


PER_SHARD = 100
"""Pictures in a shard that is made of pictures, unless more or fewer are asked for."""

ScaleOption = Annotated[
    float | None, typer.Option(help="Side of the result / side of the picture.  [default: the model's own, of mini 4]")
]
SizeOption = Annotated[
    str | None, typer.Option(metavar="WxH", help="Exact size of the result in pixels; Wx or xH: a side alone.")
]
FitOption = Annotated[str | None, typer.Option(metavar="WxH", help="As large as fits into a box, not distorted.")]
LongSideOption = Annotated[int | None, typer.Option(metavar="PIXELS", help="Longer side of the result.")]
MegapixelsOption = Annotated[float | None, typer.Option(metavar="MP", help="Millions of pixels of the result.")]
ModelOption = Annotated[str, typer.Option(help="'mini' or 'lowlight' (built in), a .safetensors file, or a folder.")]
TileOption = Annotated[int, typer.Option(help="Side of a tile in pixels of the result; 0: automatic, none if it fits.")]
ColorFixOption = Annotated[
    ColorFixName | None, typer.Option(help="Take colours from the original.  [default: the model's own]")
]
PrecisionOption = Annotated[
    PrecisionName,
    typer.Option(help="auto: bf16 where the hardware has it, else fp32; Stable Diffusion's UNets fp16 on a GPU."),
]
DeviceOption = Annotated[
    str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu; auto: the machine's GPU, else the CPU.")
]
DevicesOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAMES",
        help="cpu, cuda, cuda:1, mps, xpu; several with commas between, or all: a process for each.",
    ),
]
JobsOption = Annotated[int, typer.Option(min=1, help="Processes for each device.")]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Print files, sizes, memory and time; write nothing."),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is already there, whatever it was made with.")
]


class FormatName(str, Enum):
    """Formats by their usual suffix."""

    png = "png"
    jpg = "jpg"
    webp = "webp"
    tif = "tif"
    avif = "avif"
    gif = "gif"
    bmp = "bmp"
    exr = "exr"


class BitDepth(str, Enum):
    """Bits of a channel."""

    eight = "8"
    sixteen = "16"
    thirty_two = "32"


BITS: dict[BitDepth, Bits] = {BitDepth.eight: 8, BitDepth.sixteen: 16, BitDepth.thirty_two: 32}

FormatOption = Annotated[FormatName | None, typer.Option("--format", help="Of every result.  [default: as OUT or IN]")]
SuffixOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Put behind the names, such as -x4.  [default: -ctsr without -o]")
]
QualityOption = Annotated[
    int | None, typer.Option(metavar="1..100", help="Of JPEG, WebP and AVIF.  [default: 95, 95, 90]")
]
LosslessOption = Annotated[
    bool, typer.Option("--lossless", help="WebP without loss, which it also is where IN is lossless WebP.")
]
BitDepthOption = Annotated[
    BitDepth | None, typer.Option(help="Of a channel: PNG to 16, TIFF to 32 (floating-point).  [default: as IN]")
]
StripOption = Annotated[
    bool, typer.Option("--strip-metadata", help="Leave out camera, place, date, comments and text of the original.")
]


def make_size(
    scale: float | None = None,
    size: str | None = None,
    fit: str | None = None,
    long_side: int | None = None,
    megapixels: float | None = None,
) -> Size:
    """How large results are; raises ValueError for what cannot be."""
    from .sizes import Size, parse_box, parse_size

    wanted, box = None if size is None else parse_size(size), None if fit is None else parse_box(fit)
    return Size(scale, wanted, box, long_side, megapixels)


def make_encoding(quality: int | None, lossless: bool, bit_depth: BitDepth | None) -> Encoding:
    """How results are put into files; raises ValueError for what cannot be."""
    from ..images.formats import Encoding

    return Encoding(quality, lossless, None if bit_depth is None else BITS[bit_depth])


def make_options(
    t: float | Literal["auto"],
    size: Size,
    tile: int,
    color_fix: ColorFixName | None,
    strip_metadata: bool = False,
    encoding: Encoding | None = None,
) -> Options:
    """The settings of a run; raises ValueError for those that cannot be."""
    from ..images.formats import FOLLOW
    from .options import Options

    fix = None if color_fix is None else color_fix.value
    return Options(t, size, tile, fix, strip_metadata, encoding or FOLLOW)


def make_model(name: str, precision: PrecisionName, device: torch.device) -> LazyPipeline:
    """A model that is loaded at its first use; raises for one that is not there, and for what the device cannot do."""
    from .lazy_pipeline import LazyPipeline

    return LazyPipeline(name, precision.value, device)


def one_device(text: str) -> torch.device:
    """The device that is named; raises ValueError for several, and for one that torch cannot use."""
    from .devices import parse_devices

    devices = parse_devices(text)
    if len(devices) > 1:
        raise ValueError(f"This command runs on one device: name one, not {text}.")
    return devices[0]
