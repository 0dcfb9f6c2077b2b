"""Automatic t against fixed ones: regret over held-back photographs, and the constants that it follows.

python -m benchmarks.auto_t --photos PHOTOS --features FOLDER            the table
python -m benchmarks.auto_t --photos PHOTOS --features FOLDER --write    and ctsr/assess/tuned.py anew

FOLDER holds VGG16's features and the weights of LPIPS and DISTS, as for `ctsr evaluate --features`; LPIPS is of VGG16
with DISTS's pooling, as in training. Inputs are degraded in ways that training does not use: disc and motion blur,
Poisson noise, Lanczos, WebP. Cost is LPIPS - rate * PSNR, with the rate at which both ends of the dial are equally good
in the mean.
"""

import io
import json
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.assess import tuned
from ctsr.assess.auto_t import traits
from ctsr.assess.perceptual import dists_distance, lpips_level, products, read_heads, read_shares
from ctsr.assess.vgg import VGG_FILE, VGGFeatures
from ctsr.images.inputs import from_pil
from ctsr.images.tensors import as_pil
from training.data.photos import is_held_back, photo_paths, read_photo

SIDE, SCORED = 384, 192
"""Pixels of the ground truth, and of its middle that is scored."""
FOLDS = 6
DIALS = (0.0, 0.25, 0.5, 0.75, 1.0)
TUNED = Path(tuned.__file__)


def disc(radius: float) -> Tensor:
    """A lens out of focus, [1, 1, k, k]."""
    reach = int(radius) + 1
    offsets = torch.arange(-reach, reach + 1.0)
    inside = (radius + 0.5 - torch.hypot(offsets[:, None], offsets[None])).clamp(0, 1)
    return (inside / inside.sum())[None, None]


def motion(length: int, down: bool) -> Tensor:
    """A hand that moved along a row or a column, [1, 1, k, k]."""
    kernel = torch.full((1, 1, 1, 2 * length + 1), 1 / (2 * length + 1))
    return kernel.mT.contiguous() if down else kernel


def degrade(picture: Tensor, rng: np.random.Generator) -> Tensor:
    """[1, 3, H, W] -> a quarter of it, as one of many cameras would give it."""
    kernel = disc(rng.uniform(0.3, 6)) if rng.random() < 0.7 else motion(int(rng.integers(1, 7)), rng.random() < 0.5)
    reach = (kernel.shape[-1] // 2,) * 2 + (kernel.shape[-2] // 2,) * 2
    blurred = F.conv2d(F.pad(picture, reach, mode="replicate").transpose(0, 1), kernel).transpose(0, 1)
    image = as_pil(blurred)
    image = image.resize((image.width // 4, image.height // 4), Image.Resampling.LANCZOS)
    light = np.asarray(image, np.float64) / 255
    photons = float(np.exp(rng.uniform(np.log(150), np.log(20000))))
    noisy = rng.poisson(light * photons) / photons if rng.random() < 0.7 else light
    image = Image.fromarray((noisy.clip(0, 1) * 255).round().astype(np.uint8))
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP" if rng.random() < 0.5 else "JPEG", quality=int(rng.integers(40, 95)))
        image = Image.open(buffer).convert("RGB")
    return from_pil(image)


open_features = lru_cache(VGGFeatures)


def samples(folder: Path, most: int) -> list[tuple[str, Tensor, Tensor]]:
    """Name, ground truth and input of held-back photographs, spread over all of them."""
    names = [name for name in photo_paths(folder) if is_held_back(name)]
    found = list[tuple[str, Tensor, Tensor]]()
    for number, name in enumerate(names[:: max(1, len(names) // most)][:most]):
        pixels = read_photo(folder / name)
        if pixels is None or min(pixels.shape[:2]) < SIDE:
            continue
        rng = np.random.default_rng(number)
        top, left = (int(rng.integers(0, side - SIDE + 1)) for side in pixels.shape[:2])
        truth = from_pil(Image.fromarray(pixels[top : top + SIDE, left : left + SIDE]))
        found.append((name, truth, degrade(truth, rng)))
    return found


def score(truth: Tensor, results: list[Tensor], folder: Path) -> list[tuple[float, float, float]]:
    """PSNR, LPIPS and DISTS of each result's middle."""
    features, shares = open_features(folder / VGG_FILE), read_shares(folder)
    heads = read_heads(folder / "lpips_vgg_lin.npz")
    edge = (SIDE - SCORED) // 2
    inside = (..., slice(edge, edge + SCORED), slice(edge, edge + SCORED))
    rows, true = list[tuple[float, float, float]](), truth[inside].contiguous()
    with torch.no_grad():
        seen = features(2 * true - 1)
        for result in results:
            made = result[inside].contiguous()
            levels = [products(*pair) for pair in zip(features(2 * made - 1), seen, strict=True)]
            near = sum(float(lpips_level(of, head)) for of, head in zip(levels, heads, strict=True))
            structure = float(dists_distance([products(made, true), *levels], shares))
            error = float((made - true).square().mean())
            rows.append((-10 * float(np.log10(max(error, 1e-10))), near, structure))
    return rows


def at(costs: Tensor, t: Tensor) -> Tensor:
    """Costs [n, 5] at t [n] by the parabola through the nearest three of `DIALS`: smooth enough to descend."""
    centre = (t.detach() * 4).round().clamp(1, 3).long()
    left, middle, right = (costs.gather(1, (centre + k)[:, None])[:, 0] for k in (-1, 0, 1))
    x = 4 * t - centre
    return middle + x * (right - left) / 2 + x.square() * (right + left - 2 * middle) / 2


def fit(features: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bias of least mean cost; an L1 penalty leaves out features that tell little."""
    weight, bias = torch.zeros(features.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    spread = float(costs.std(1).mean())
    optimizer = torch.optim.Adam([weight, bias], 0.05)
    for _ in range(250):
        t = torch.sigmoid(features @ weight + bias)
        loss = at(costs, t).mean() / spread + 0.15 * weight.abs().sum() + 0.005 * bias.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weight.detach(), bias.detach()


def main(
    photos: Annotated[Path, typer.Option(help="the folder of photographs")],
    features: Annotated[Path, typer.Option(help="the folder of VGG16, LPIPS and DISTS")],
    scores: Annotated[Path | None, typer.Option(help="a JSON file that scores are kept in, or read from")] = None,
    most: Annotated[int, typer.Option(help="photographs")] = 40,
    write: Annotated[bool, typer.Option(help="ctsr/assess/tuned.py anew")] = False,
) -> None:
    """Prints regret by t; for "auto", each sixth of the photographs is judged by constants fitted on the others."""
    if scores is not None and scores.exists():
        rows = json.loads(scores.read_text())
    else:
        rows = measure(photos, features, most)
        if scores is not None:
            scores.write_text(json.dumps(rows))
    raw = torch.tensor([row["features"] for row in rows])
    table = torch.tensor([row["scores"] for row in rows])  # [n, 5, 3]
    psnr, lpips = table[..., 0], table[..., 1]
    rate = float((lpips[:, 0] - lpips[:, -1]).mean() / (psnr[:, 0] - psnr[:, -1]).mean())
    rate = min(max(rate, 0.005), 0.1)
    costs = lpips - rate * psnr
    mean, deviation = raw.mean(0), raw.std(0).clamp_min(1e-3)
    known = ((raw - mean) / deviation).clamp(-2, 2)
    chosen = torch.zeros(len(rows))
    for fold in range(FOLDS):
        held = torch.arange(len(rows)) % FOLDS == fold
        weight, bias = fit(known[~held], costs[~held])
        chosen[held] = torch.sigmoid(known[held] @ weight + bias)
    best = costs.min(1).values
    print(f"{len(rows)} photographs; 1 dB is worth {rate:.4f} LPIPS")
    for index, t in enumerate(DIALS):
        show(f"t = {t:g}", costs[:, index] - best, psnr[:, index], lpips[:, index])
    show("auto (held out)", at(costs, chosen) - best, at(psnr, chosen), at(lpips, chosen))
    oracle = costs.argmin(1, keepdim=True)
    show("oracle", best - best, psnr.gather(1, oracle)[:, 0], lpips.gather(1, oracle)[:, 0])
    worst_psnr, worst_dists = psnr.min(1).values, table[..., 2].max(1).values
    print(
        f"worse than the worst fixed t: by {float((worst_psnr - at(psnr, chosen)).max()):.3f} dB and "
        f"{float((at(table[..., 2], chosen) - worst_dists).max()):.4f} DISTS at most"
    )
    weight, bias = fit(known, costs)
    print(f"weights {[round(float(x), 3) for x in weight]}, bias {float(bias):.3f}")
    if write:
        write_tuned(mean, deviation, weight, float(bias))


def measure(photos: Path, folder: Path, most: int) -> list[dict[str, Any]]:
    """Features and scores of every photograph."""
    pipe, rows = CTSRPipeline.mini(), list[dict[str, Any]]()
    for name, truth, small in samples(photos, most):
        results = list(pipe.sweep(small, (SIDE, SIDE), DIALS))
        rows.append({"name": name, "features": traits(small).features, "scores": score(truth, results, folder)})
        print(
            name, [round(x, 2) for x in rows[-1]["features"]], [round(x[1], 3) for x in rows[-1]["scores"]], flush=True
        )
    return rows


def show(name: str, regret: Tensor, psnr: Tensor, lpips: Tensor) -> None:
    """One line of the table."""
    print(
        f"{name:16} regret {float(regret.mean()):.4f}  PSNR {float(psnr.mean()):.3f}  LPIPS {float(lpips.mean()):.4f}"
    )


def write_tuned(mean: Tensor, deviation: Tensor, weight: Tensor, bias: float) -> None:
    """The constants, under the docstring and the names that the file has."""
    text = TUNED.read_text(encoding="utf-8")
    head = text[: text.index("MEAN =")]
    values = {"MEAN": mean, "DEVIATION": deviation, "WEIGHT": weight}
    lines = [f"{name} = ({', '.join(f'{float(x):.3f}' for x in value)})" for name, value in values.items()]
    TUNED.write_text(f"{head}{chr(10).join(lines)}\nBIAS = {bias:.3f}\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
