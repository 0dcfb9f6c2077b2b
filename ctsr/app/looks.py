"""What `ctsr compare` and `ctsr report` write of pictures that are there already."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..assess.maps import departure_mask
from ..assess.report import Report, report, rows
from ..images.picture import Picture
from ..images.read import read_picture
from ..whole_file import whole_file
from .lazy_pipeline import LazyPipeline
from .page import about, page, show_map, show_picture, write_page
from .upscale import start_noise


def compare(paths: Sequence[Path], target: Path) -> str:
    """Writes a page of two pictures or more; returns what it holds.

    Raises:
        ValueError: fewer than two, shapes that differ, or a target that is an input.
        ImageReadError: a picture that cannot be read.
    """
    if len(paths) < 2:
        raise ValueError("Name two pictures or more to compare.")
    check_page(target, paths)
    pictures = [read_picture(path) for path in paths]
    check_shapes(paths, pictures)
    shown = [show_picture(name, picture) for name, picture in zip(names(paths), pictures, strict=True)]
    write_page(target, page(" | ".join(picture.name for picture in shown), shown))
    return ", ".join(f"{picture.name} {picture.width}x{picture.height}" for picture in shown)


def check_page(target: Path, inputs: Sequence[Path]) -> None:
    """Raises ValueError for a page that is no .html file or would replace a picture."""
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{target} is written as HTML: give it a name that ends in .html.")
    if target.resolve() in [path.resolve() for path in inputs]:
        raise ValueError(f"{target} would overwrite an input: name another with -o.")
    if not target.parent.is_dir():
        raise ValueError(f"There is no folder {target.parent}: make it, or name another with -o.")


def names(paths: Sequence[Path]) -> list[str]:
    """File names, with their folder where two are the same."""
    count = Counter(path.name for path in paths)
    return [path.name if count[path.name] == 1 else str(path) for path in paths]


def check_shapes(paths: Sequence[Path], pictures: Sequence[Picture]) -> None:
    """Raises ValueError for pictures that cannot lie over each other."""
    first = pictures[0]
    for path, picture in zip(paths, pictures, strict=True):
        ratio = (picture.width / picture.height) / (first.width / first.height)
        if abs(ratio - 1) > 2 / min(first.width, first.height, picture.width, picture.height):
            raise ValueError(
                f"{path} ({picture.width}x{picture.height}) has not the shape of {paths[0]} "
                f"({first.width}x{first.height}): compare pictures of one scene, neither cropped nor rotated."
            )


def write_report(source: Path, result: Path, target: Path, model: LazyPipeline | None) -> Report:
    """Reports on a result: `target` (HTML) and the same numbers as JSON beside it.

    Args:
        source: the picture that went in.
        result: what any upscaler made of it.
        target: the page.
        model: its result at t = 1 is what additions are measured against; None: the bicubic enlargement.
    """
    check_page(target, [source, result])
    picture, made = read_picture(source), read_picture(result)
    found = report(picture.rgb, made.rgb.clamp(0, 1), None if model is None else faithful_result(model, picture, made))
    size = (made.height, made.width)
    shown = [
        show_picture(f"input: {source.name}", picture),
        show_picture(f"result: {result.name}", made),
        show_map("map: departs from the input", departure_mask(found, size)),
        show_map("map: detail that was added", found.added_map),
        show_map("map: texture that is gone", F.interpolate(found.lost_map, size=size)),
    ]
    write_page(target, page(f"Report on {result.name}", shown, about(found.findings, rows(found))))
    with whole_file(target.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(as_json(found, source, result), indent=2) + "\n", encoding="utf-8")
    return found


def faithful_result(model: LazyPipeline, picture: Picture, made: Picture) -> Tensor:
    """The model's result at t = 1, of the size of the result in question."""
    made_at_1 = model.pipeline(
        picture.rgb, 1.0, height=made.height, width=made.width, generator=start_noise(), output_type="pt"
    )
    return made_at_1.images.cpu()


def as_json(found: Report, source: Path, result: Path) -> dict[str, Any]:
    """The report's numbers and findings; lengths in pixels of the result, brightness in [0, 1]."""
    return {
        "input": source.name,
        "result": result.name,
        "noise": found.noise,
        "blur": None if found.blur is None else {"lens": found.blur.lens, "scene": found.blur.scene},
        "blocks": found.blocks,
        "departure": found.departure,
        "added": found.added,
        "cast": list(found.camera.cast),
        "shift": list(found.shift),
        "camera_blur": found.camera.blur,
        "sharpening": found.sharpening,
        "halo": found.halo,
        "clipped": found.clipped,
        "findings": [
            {"kind": finding.kind, "value": finding.value, "box": finding.box, "text": finding.text}
            for finding in found.findings
        ],
    }
