"""ctsr-lowlight against its teachers, a plain gamma, a stretch of the histogram and the input, on held-back pictures.

    python -m benchmarks.lowlight --photos PHOTOS --features PERCEPTUAL --out OUT \\
        --models RUNS/fidelity/model.safetensors RUNS/osediff/model.safetensors

The middle of 40 held-back photographs is darkened in two ways, always alike: by a gamma, with noise and JPEG, and by
three stops of exposure, with noise alone. PSNR and SSIM are of RGB. Writes a picture of some of them: input, gamma,
t = 0, .5 and 1, photograph.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from skimage.metrics import structural_similarity
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.assess.perceptual import open_distances
from ctsr.images.tensors import as_pil
from ctsr.load import LOWLIGHT, load_pipeline
from training.data.photos import load_photos, read_photo
from training.data.same_size import Light, SameSize, exposure, spoil

WAYS = {
    "gamma 2.5, noise, JPEG 90": SameSize(light=Light(0.7, 2.5), noise=(2.0, 0.1), quality=90),
    "3 stops, noise": SameSize(light=exposure(3.0), noise=(1.5, 0.1)),
}
MIDDLE_GREY = 0.45
"""Mean luma that the plain gamma aims at: about that of the photographs."""
DIALS = (0.0, 0.5, 1.0)
SHOWN, MOST = 6, 40

Method = Callable[[Tensor], Tensor]


def luma(x: Tensor) -> Tensor:
    """BT.601 of [1, 3, H, W]."""
    return (x * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)


def to_mean(x: Tensor, mean: float) -> Tensor:
    """x^g whose mean luma is `mean`, g by bisection."""
    low, high, gamma = 0.05, 5.0, 1.0
    for _ in range(30):
        gamma = (low * high) ** 0.5
        low, high = (gamma, high) if float(luma(x**gamma).mean()) > mean else (low, gamma)
    return x**gamma


def stretched(x: Tensor) -> Tensor:
    """Black and white where a two-hundredth of all values is darker and lighter."""
    black, white = (float(x.quantile(share)) for share in (0.005, 0.995))
    return ((x - black) / max(white - black, 1e-3)).clamp(0, 1)


def methods(models: tuple[str, ...]) -> dict[str, Method]:
    """Everything that is scored but the input, by name."""

    def at(pipeline: CTSRPipeline, t: float) -> Method:
        return lambda x: pipeline(x, t=t, output_type="pt").images

    named: dict[str, Method] = {"plain gamma": lambda x: to_mean(x, MIDDLE_GREY), "stretch": stretched}
    for number, model in enumerate(models):
        pipeline = load_pipeline(model)
        dials = DIALS if pipeline.family.has_dial else DIALS[:1]
        name = model if number == len(models) - 1 else Path(model).parent.name
        named |= {f"{name} t={t:g}" if len(dials) > 1 else name: at(pipeline, t) for t in dials}
    return named


def to_tensor(pixels: np.ndarray[Any, Any]) -> Tensor:
    """[H, W, 3] uint8 -> [1, 3, H, W] in [0, 1]."""
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def pairs(photos: Path, draw: SameSize, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Dark and light, [1, 3, S, S] in [0, 1] each, of at most `MOST` photographs."""
    for number, path in enumerate(sorted(load_photos(photos, training=False).held_back.values())[:MOST]):
        pixels = read_photo(path)
        if pixels is None:
            continue
        top, left = ((length - side) // 2 for length in pixels.shape[:2])
        light = np.ascontiguousarray(pixels[max(0, top) :, max(0, left) :][:side, :side])
        dark = spoil(light, draw, np.random.default_rng(number))
        yield to_tensor(dark), to_tensor(light)


def score(x: Tensor, truth: Tensor, distances: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> list[float]:
    """PSNR in dB, SSIM, and the distances."""
    x = (255 * x).round().clamp(0, 255) / 255
    psnr = float(-10 * torch.log10((x - truth).square().mean()))
    ssim: Any = structural_similarity(x[0].numpy(), truth[0].numpy(), channel_axis=0, data_range=1.0)
    return [psnr, ssim, *(float(distance(x, truth)) for distance in distances.values())]


@torch.no_grad()
def main(photos: Path, features: Path, out: Path, models: tuple[str, ...] = (), side: int = 320) -> None:
    """Prints a table for each way of darkening, and writes the pictures.

    Args:
        photos: folder of photographs.
        features: folder with the weights of LPIPS and DISTS.
        out: folder for the pictures.
        models: teachers' files, beside the built-in model.
        side: of what is scored, in px.
    """
    distances, named = open_distances(features, torch.device("cpu")), methods((*models, LOWLIGHT))
    out.mkdir(parents=True, exist_ok=True)
    for number, (way, draw) in enumerate(WAYS.items()):
        rows: dict[str, list[list[float]]] = {}
        shown: list[Tensor] = []
        for index, (dark, light) in enumerate(pairs(photos, draw, side)):
            results = {"input": dark, **{name: method(dark) for name, method in named.items()}}
            for name, x in results.items():
                rows.setdefault(name, []).append(score(x, light, distances))
            if index % 10 == 0 and len(shown) < SHOWN and light.shape[2:] == (side, side):
                own = [results[f"{LOWLIGHT} t={t:g}"] for t in DIALS]
                shown.append(torch.cat([dark, results["plain gamma"], *own, light], dim=3))
        as_pil(torch.cat(shown, dim=2).clamp(0, 1)).save(out / f"lowlight{number}.jpg", quality=92)
        print(
            f"{way}: {len(rows['input'])} pictures\n| | PSNR | SSIM | {' | '.join(distances)} |\n|---|---|---|---|---|"
        )
        for name, row in rows.items():
            psnr, *others = np.mean(row, axis=0)
            print(f"| {name} | {psnr:.2f} | {' | '.join(f'{value:.3f}' for value in others)} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
