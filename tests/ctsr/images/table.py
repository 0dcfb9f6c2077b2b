"""What each format gives into each: measured by writing files, reading them back and comparing; a table in docs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import ExifTags, ImageCms

from ctsr.images.frames import look_for_frames
from ctsr.images.metadata import Metadata
from ctsr.images.picture import Bits, Picture
from ctsr.images.read import read_picture
from ctsr.images.write import Frame, write_frames, write_picture

PAGE = Path(__file__).parents[3] / "docs" / "formats.md"
INPUTS = [".png", ".jpg", ".webp", ".tif", ".avif", ".bmp", ".gif", ".exr"]
OUTPUTS = INPUTS
DEPTHS: dict[str, Bits] = {".png": 16, ".tif": 32, ".exr": 32}
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_ICC = ICC[:16] + b"GRAY" + ICC[20:]
EXIF = {ExifTags.Base.Make: "ExampleCam", ExifTags.IFD.Exif: {ExifTags.Base.DateTimeOriginal: "2024:05:06 07:08:09"}}
FULL = Metadata(
    exif=EXIF,
    xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>",
    iptc=bytes.fromhex("1c026e0007") + b"Example",
    dpi=(300, 300),
    text={"parameters": "a prompt", "Comment": "a comment"},
)
INTRODUCTION = """# What survives from format to format

What each format keeps of a picture that has it. Depth is bits a channel, 32 floating-point; what is lost, laid over
white or rounded is said in a warning, and *refused* is an error before the work. RAW, HEIC and JPEG XL are read, not
written.
"""
DETAILS = """
<details><summary>Every pair of formats</summary>

Made by `python -m tests.ctsr.images.table`, and tested to be true: each cell is measured on a file of the first format
that holds everything the format can, written as the second and read again. *yes*: kept; *no*: the second format has no
place for it; *–*: the first has none. *said*: a warning names what is lost. One still of grey becomes colour where a
format has no grey. What is kept of RAW, HEIC and JPEG XL is as in a row of PNG, without text.
"""
COLUMNS = ["colour", "grey", "depth", "alpha", "ICC", "EXIF", "XMP", "IPTC", "DPI", "text", "frames", "said"]


@dataclass(frozen=True)
class Row:
    """What of a file in one format is in the file in another that is made of it."""

    source: str
    target: str
    cells: dict[str, str]


class Heard(logging.Handler):
    """Whether a warning was given."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`."""
        self.texts.append(record.getMessage())


def gradient(channels: int = 3) -> torch.Tensor:
    """[1, C, 48, 64] in [0, 1]: smooth, so that what compresses with loss is near it."""
    ramp = torch.linspace(0.1, 0.9, 64).expand(1, 1, 48, 64)
    return torch.cat([ramp, ramp.flip(3), ramp * 0.5 + 0.2], 1) if channels == 3 else ramp.repeat(1, 3, 1, 1)


def source_file(folder: Path, suffix: str) -> Path:
    """A file with everything that its format holds."""
    alpha = (torch.arange(64) > 20).float().expand(1, 1, 48, 64)
    like = Picture(gradient(), alpha, bits=DEPTHS.get(suffix, 8), icc_profile=ICC, metadata=FULL)
    write_picture(folder / f"full{suffix}", gradient(), like, alpha)
    return folder / f"full{suffix}"


def yes(kept: bool, had: bool) -> str:
    """A cell: kept, lost, or not there in the first place."""
    return ("yes" if kept else "no") if had else "–"


def compare(before: Picture, after: Picture) -> dict[str, str]:
    """The cells of a picture with everything."""
    seen = torch.ones_like(before.rgb[:, :1]) if before.alpha is None else before.alpha
    old, new = before.metadata, after.metadata
    texts = [str(value) for value in (*new.exif.values(), *new.text.values(), new.comment)]
    return {
        "colour": yes(float(((before.rgb - after.rgb).abs() * seen).mean()) < 0.02, True),
        "depth": f"{before.bits} → {after.bits}",
        "alpha": yes(after.alpha is not None, before.alpha is not None),
        "ICC": yes(after.icc_profile == before.icc_profile, before.icc_profile is not None),
        "EXIF": yes(new.exif.get(ExifTags.Base.Make) == "ExampleCam", ExifTags.Base.Make in old.exif),
        "XMP": yes(new.xmp == old.xmp, bool(old.xmp)),
        "IPTC": yes(new.iptc == old.iptc, bool(old.iptc)),
        "DPI": yes(new.dpi == old.dpi, old.dpi is not None),
        "text": yes(any("a prompt" in text or "a comment" in text for text in texts), bool(old.text or old.comment)),
    }


def of_grey(folder: Path, source: str, target: str) -> str:
    """Whether grey stays grey."""
    write_picture(folder / f"grey{source}", gradient(1), Picture(gradient(1), grey=True))
    before = read_picture(folder / f"grey{source}")
    write_picture(folder / f"grey-out{target}", before.rgb, before)
    return yes(read_picture(folder / f"grey-out{target}").grey, before.grey)


def of_frames(folder: Path, source: str, target: str) -> str:
    """Whether two frames with their durations, or two pages, survive; "refused" where that is the answer."""
    kind = {".tif": "pages", ".jpg": "", ".bmp": "", ".exr": ""}.get(source, "animation")
    if not kind:
        return "–"
    frames = [Frame(picture := (gradient() * scale), Picture(picture), duration=40) for scale in (1.0, 0.5)]
    write_frames(folder / f"frames{source}", frames, kind)
    found = look_for_frames(folder / f"frames{source}")
    out = folder / f"frames-out{target}"
    try:
        write_frames(out, (Frame(x.rgb, x, x.alpha, time) for x, time in found.read()), kind, found.plays)
    except Exception as error:
        return "refused" if type(error).__name__ == "ImageWriteError" else repr(error)
    durations = [[time for _, time in file.read()] for file in (found, look_for_frames(out))]
    return yes(durations[0] == durations[1], True)


def rows(sources: list[str] = INPUTS, targets: list[str] = OUTPUTS) -> Iterator[Row]:
    """Every pair."""
    heard, logger = Heard(), logging.getLogger("ctsr")
    logger.addHandler(heard)
    with TemporaryDirectory() as name:
        for source in sources:
            before = read_picture(source_file(Path(name), source))
            before = replace(before, metadata=replace(before.metadata, endian=None))
            for target in targets:
                heard.texts.clear()
                out = Path(name) / f"out{target}"
                write_picture(out, before.rgb, before, before.alpha)
                said = bool(heard.texts)
                cells = compare(before, read_picture(out))
                cells["grey"] = of_grey(Path(name), source, target)
                cells["frames"] = of_frames(Path(name), source, target)
                yield Row(source, target, {**cells, "said": "yes" if said else "–"})
    logger.removeHandler(heard)


def summary(measured: list[Row], target: str) -> str:
    """A line of the first table: what a format keeps of those that have it."""
    cells: list[str] = []
    for column in COLUMNS[:-1]:
        values = {row.source[1:]: row.cells[column] for row in measured if row.target == target}
        if column == "depth":
            cells.append(str(max(int(value.split(" → ")[1]) for value in values.values())))
            continue
        by_value: dict[str, list[str]] = {}
        for source, value in values.items():
            by_value.setdefault(value, []).append(source)
        by_value.pop("–", None)
        usual, *others = sorted(by_value, key=lambda value: -len(by_value[value])) or ["–"]
        cells.append(usual + "".join(f"; from {', '.join(by_value[value])} {value}" for value in others))
    return f"| {target[1:]} | " + " | ".join(cells) + " |"


def table(suffixes: list[str] = INPUTS) -> str:
    """The page, of some formats."""
    measured = list(rows(suffixes, suffixes))
    head = " | ".join(COLUMNS)
    lines = [*INTRODUCTION.splitlines(), "", f"| written as | {head.removesuffix(' | said')} |"]
    lines += ["|" + "---|" * len(COLUMNS), *(summary(measured, suffix) for suffix in suffixes)]
    lines += [*DETAILS.splitlines(), "", f"| in | out | {head} |", "|" + "---|" * (2 + len(COLUMNS))]
    for row in measured:
        cells = " | ".join(row.cells[column] for column in COLUMNS)
        lines.append(f"| {row.source[1:]} | {row.target[1:]} | {cells} |")
    return "\n".join([*lines, "", "</details>"]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(table(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}\n")
