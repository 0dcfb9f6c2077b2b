"""Makes the pictures of README and of the example workflows again, with the built-in model: after new weights.

    python -m benchmarks.pictures

Writes examples/images/dial.jpg and the .jpg beside each workflow, from the samples in examples/images. The screenshots
of ComfyUI (comfyui.jpg, comfyui_sweep.jpg) are taken in a browser instead.
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.assess.maps import heat
from ctsr.assess.report import report
from ctsr.images.inputs import from_pil
from ctsr.images.strip import dial_name, panel
from ctsr.images.tensors import as_pil, resize

EXAMPLES = Path(__file__).parents[1] / "examples"
WIDTH = 768  # px of a workflow's picture
HEAD = [
    (0, 19),
    (30, 5),
    (58, 4),
    (90, 11),
    (115, 25),
    (140, 38),
    (158, 58),
    (167, 66),
    (177, 100),
    (175, 140),
    (186, 134),
    (193, 155),
    (192, 185),
    (140, 191),
    (95, 188),
    (66, 160),
    (20, 140),
    (12, 105),
    (2, 60),
]
"""Outline of the hippopotamus in its picture of 256x192, as it was painted."""


def sample(name: str) -> Tensor:
    """[1, 3, h, w] in [0, 1]."""
    return from_pil(Image.open(EXAMPLES / "images" / name))


def restore(pipe: CTSRPipeline, picture: Tensor, dials: list[float]) -> list[Tensor]:
    """The picture at several t, four times as large."""
    return list(pipe.sweep(picture, (4 * picture.shape[2], 4 * picture.shape[3]), dials))


def enlarged(picture: Tensor) -> Tensor:
    """The picture four times as large, bicubic."""
    return resize(picture, 4 * picture.shape[2], 4 * picture.shape[3]).clamp(0, 1)


def panels(pictures: dict[str, Tensor], side: int) -> Tensor:
    """Middles side by side, each below its label."""
    return torch.cat([panel(picture, None, label, side) for label, picture in pictures.items()], dim=3)


def named(dials: list[float], pictures: list[Tensor]) -> dict[str, Tensor]:
    """Pictures by their labels."""
    return {f"t = {dial_name(t)}": picture for t, picture in zip(dials, pictures, strict=True)}


def save(name: str, picture: Tensor | Image.Image, width: int | None = None) -> None:
    """Writes a JPEG under examples/, of a width if one is given."""
    image = as_pil(picture.clamp(0, 1)) if isinstance(picture, Tensor) else picture
    if width is not None:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.save(EXAMPLES / name, quality=90)


def split(left: Tensor, right: Tensor) -> Tensor:
    """The left half of one picture and the right half of another, a white line between."""
    middle = left.shape[3] // 2
    joined = torch.cat([left[..., :middle], right[..., middle:]], dim=3)
    joined[..., middle - 2 : middle + 2] = 1
    return joined


def masked(pipe: CTSRPipeline, hippo: Tensor) -> Image.Image:
    """The painted input beside what it becomes: faithful where it was painted, realistic elsewhere."""
    mask = Image.new("L", (hippo.shape[3], hippo.shape[2]))
    ImageDraw.Draw(mask).polygon(HEAD, fill=255)
    (result,) = pipe(hippo, t_map=mask, output_type="pil").images
    painted = as_pil(resize(hippo, result.height, result.width).clamp(0, 1))
    painted.paste(
        Image.blend(painted, Image.new("RGB", painted.size, (220, 20, 40)), 0.6), mask=mask.resize(painted.size)
    )
    both, middle = Image.new("RGB", result.size, "white"), result.width // 4
    for left, half in ((0, painted), (result.width // 2 + 2, result)):
        both.paste(half.crop((middle, 0, 3 * middle - 2, result.height)), (left, 0))
    return both


def reported(pipe: CTSRPipeline, picture: Tensor) -> Tensor:
    """The result at the automatic t, and on its right half the map of what was added."""
    result = pipe(picture, t="auto", output_type="pt").images
    faithful = pipe(picture, t=1.0, output_type="pt").images
    return split(result, heat(report(picture, result, faithful).added_map))


def main() -> None:
    """Writes them."""
    pipe = CTSRPipeline.mini()
    colosseum, mural, hippo = (sample(name) for name in ("colosseum.jpg", "mural.jpg", "hippo.png"))
    dials = [0.0, 0.5, 1.0]
    results = {name: restore(pipe, picture, dials) for name, picture in (("colosseum", colosseum), ("mural", mural))}
    rows = [
        panels({"bicubic": enlarged(picture), **named(dials, restore(pipe, picture, dials))}, 512)
        for picture in (sample("kudu.jpg"), sample("grapes.jpg"))
    ]
    save("images/dial.jpg", torch.cat(rows, dim=2))
    save("Compare several t.jpg", panels(named(dials, results["colosseum"]), 512), WIDTH)
    save("Upscale step by step.jpg", results["colosseum"][1], WIDTH)
    save("Upscale in one node.jpg", results["mural"][1], WIDTH)
    save("Large picture in tiles.jpg", results["mural"][1], WIDTH)
    save("Upscale a video.jpg", split(enlarged(colosseum), results["colosseum"][1]), WIDTH)
    save("Drag t on the picture.jpg", split(results["mural"][2], results["mural"][0]), WIDTH)
    save("Choose t automatically and report.jpg", reported(pipe, colosseum), WIDTH)
    save("Keep a face faithful with a mask.jpg", masked(pipe, hippo), WIDTH)


if __name__ == "__main__":
    main()
