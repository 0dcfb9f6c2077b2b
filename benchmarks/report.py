"""Precision and recall of the fidelity report on faults with known answers, from held-back photographs.

python -m benchmarks.report --photos PHOTOS           the table in README
python -m benchmarks.report --photos PHOTOS --show    every picture's findings

The faults are put into results that have none: the ground truth, the bicubic enlargement, and ours at t = 1 (which may
have some: it does not count for precision). The input is the ground truth through a lens, a coarser sensor, noise and
JPEG, drawn by the picture's number.
"""

import io
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.assess.detail import clipped
from ctsr.assess.report import report
from ctsr.assess.windows import Box, gaussian, luma
from ctsr.images.inputs import from_pil
from ctsr.images.tensors import as_pil, resize
from training.data.photos import is_held_back, photo_paths, read_photo

SCALE, SIDE = 4, 512
BASES = ("truth", "bicubic", "t = 1")
LENSES, NOISES, QUALITIES = (0.3, 0.5, 0.8), (0, 1, 2, 4), (None, None, 90, 75)
"""Blur in pixels of the input, noise in levels of 255, quality of JPEG."""


def degrade(picture: Tensor, lens: float, noise: float, quality: int | None, seed: int) -> Tensor:
    """[1, 3, H, W] -> [1, 3, H / 4, W / 4]: what a camera would have given."""
    height, width = (side // SCALE for side in picture.shape[-2:])
    small = resize(gaussian(picture, SCALE * lens), height, width)
    small += torch.randn(small.shape, generator=torch.Generator().manual_seed(seed)) * noise / 255
    image = as_pil(small.clamp(0, 1))
    if quality is not None:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        image = Image.open(buffer)
    return from_pil(image)


def region(picture: Tensor, number: int, part: int = 5) -> Box:
    """A box somewhere inside."""
    rng = np.random.default_rng(number)
    height, width = picture.shape[-2:]
    left, top = int(rng.integers(width // 8, width * 5 // 8)), int(rng.integers(height // 8, height * 5 // 8))
    return left, top, left + width // part, top + height // part


def paste_object(picture: Tensor, number: int) -> tuple[Tensor, Box | None]:
    """A piece of the same picture, mirrored, somewhere else."""
    left, top, right, bottom = box = region(picture, number)
    out = picture.clone()
    out[..., top:bottom, left:right] = picture.flip(-1, -2)[..., top:bottom, left:right]
    return out, box


def write_text(picture: Tensor, number: int) -> tuple[Tensor, Box | None]:
    """Lettering 24 pixels high that half covers what is under it."""
    left, top, *_ = region(picture, number)
    image = as_pil(picture)
    overlay = Image.new("L", image.size)
    ImageDraw.Draw(overlay).text((left, top), "invented", fill=128, font=ImageFont.load_default(24))
    mean = float(picture[..., top : top + 24, left : left + 96].mean())
    ink = (0, 0, 0) if mean > 0.5 else (255, 255, 255)
    image.paste(ink, mask=overlay)
    return from_pil(image), overlay.getbbox()


def smooth(picture: Tensor, number: int) -> tuple[Tensor, Box | None]:
    """A third of the picture without its texture: of four places the one that has most."""
    fine = luma(picture - gaussian(picture, SCALE)).square()

    def texture(box: Box) -> float:
        left, top, right, bottom = box
        return float(fine[..., top:bottom, left:right].mean())

    left, top, right, bottom = box = max((region(picture, 4 * number + i, 3) for i in range(4)), key=texture)
    out = picture.clone()
    out[..., top:bottom, left:right] = gaussian(picture, 6)[..., top:bottom, left:right]
    return out, box


def seam(picture: Tensor, number: int) -> tuple[Tensor, Box | None]:
    """One level brighter from the middle on."""
    out, middle = picture.clone(), picture.shape[-1] // 2
    out[..., middle:] += 1 / 255
    return out, (middle, 0, middle, picture.shape[-2])


def cast(picture: Tensor, number: int) -> tuple[Tensor, Box | None]:
    """One channel two levels too high or too low."""
    out = picture.clone()
    out[:, number % 3] += (2 if number % 2 else -2) / 255
    return out, None


def shift(picture: Tensor, number: int) -> tuple[Tensor, Box | None]:
    """One pixel to the right, or downwards."""
    return picture.roll(1, -1 - number % 2), None


def sharpen(picture: Tensor, number: int) -> tuple[Tensor, Box | None]:
    """An unsharp mask of one pixel of the input and twice the difference."""
    return (picture + 2 * (picture - gaussian(picture, SCALE))).clamp(0, 1), None


def brighten(picture: Tensor, number: int) -> tuple[Tensor, Box | None]:
    """Twice the contrast in a third of the picture; no fault where next to nothing becomes white by that."""
    left, top, right, bottom = box = region(picture, number, 3)
    out = picture.clone()
    part = out[..., top:bottom, left:right]
    out[..., top:bottom, left:right] = (part + (part - part.mean()) + 0.25).clamp(0, 1)
    return out, box


FAULTS: dict[str, tuple[str, Callable[[Tensor, int], tuple[Tensor, Box | None]]]] = {
    "pasted object": ("foreign", paste_object),
    "invented text": ("foreign", write_text),
    "plastic skin": ("plastic", smooth),
    "colour cast of 2/255": ("cast", cast),
    "seam of 1/255": ("seam", seam),
    "shift of 1 px": ("shift", shift),
    "over-sharpening": ("sharpened", sharpen),
    "blown highlights": ("clipped", brighten),
    "none": ("", lambda picture, number: (picture, None)),
}


ALSO = {
    "blown highlights": ("foreign",),
    "over-sharpening": ("clipped", "foreign"),
    "plastic skin": ("foreign",),
}
"""What a fault brings with it, at its place: neither right nor wrong."""
LEAST_BLOWN = 0.02
"""Part of the picture that must be newly black or white for that to be a fault."""


def touches(box: Box | None, other: Box | None) -> bool:
    """Whether two boxes share a place; a fault of the whole picture is anywhere."""
    if box is None or other is None:
        return True
    (left, top, right, bottom), near = other, 2 * SCALE
    return box[0] <= right + near and left <= box[2] + near and box[1] <= bottom + near and top <= box[3] + near


def photographs(folder: Path) -> list[tuple[str, Tensor]]:
    """The middle of every held-back photograph, at most `SIDE` a side."""
    found = list[tuple[str, Tensor]]()
    for name, path in photo_paths(folder).items():
        if not is_held_back(name) or (pixels := read_photo(path)) is None:
            continue
        height, width = (min(SIDE, side // 8 * 8) for side in pixels.shape[:2])
        top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
        square = Image.fromarray(pixels[top : top + height, left : left + width])
        found.append((name, from_pil(square)))
    return found


def main(
    photos: Annotated[Path, typer.Option(help="the folder of photographs")],
    show: Annotated[bool, typer.Option(help="every picture's findings")] = False,
    every: Annotated[int, typer.Option(help="one photograph in so many")] = 1,
) -> None:
    """Prints recall by fault, and of all findings by kind which part was there."""
    made, hits, right, wrong = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    pictures, model = photographs(photos)[::every], CTSRPipeline.mini()
    for number, (name, truth) in enumerate(pictures):
        lens, noise, quality = LENSES[number % 3], NOISES[number % 4], QUALITIES[number // 2 % 4]
        small = degrade(truth, lens, noise, quality, number)
        height, width = truth.shape[-2:]
        faithful = model(small, height=height, width=width, t=1.0, output_type="pt").images
        bases = (truth, resize(small, height, width).clamp(0, 1), faithful)
        for (base_name, base), (fault, (kind, make)) in product(zip(BASES, bases, strict=True), FAULTS.items()):
            faulty, place = make(base, number)
            if kind == "clipped" and clipped(base, faulty) < LEAST_BLOWN:
                continue
            found = report(small, faulty, faithful).findings
            there = [finding.kind for finding in found if touches(finding.box, place)]
            made[f"{fault} in {base_name}"] += 1
            hits[f"{fault} in {base_name}"] += kind in there
            if base_name != BASES[-1]:  # nobody knows what is wrong with the model's own results
                right[kind] += there.count(kind)
                wrong.update(finding.kind for finding in found)
                wrong.subtract(name for name in there if name in (kind, *ALSO.get(fault, ())))
            if show:
                words = "; ".join(finding.text for finding in found)
                print(f"{name} lens {lens} noise {noise} q {quality} | {fault} in {base_name} | {words}")
    for fault, (kind, _) in FAULTS.items():
        if kind:
            names = [f"{fault} in {base}" for base in BASES]
            print(f"recall {fault}: {', '.join(f'{hits[x]} of {made[x]}{x.removeprefix(fault)}' for x in names)}")
    for kind in sorted(kind for kind, _ in FAULTS.values() if kind):
        total = right[kind] + wrong[kind]
        print(f"precision {kind}: {right[kind] / max(1, total):.3f} of {total}")
    print(f"{len(pictures)} photographs, {len(BASES) * len(FAULTS)} results each")


if __name__ == "__main__":
    typer.run(main)
