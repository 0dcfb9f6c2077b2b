"""Automatic t against fixed ones: regret over held-back photographs, and the constants that it follows.

python -m benchmarks.auto_t tune --photos PHOTOS --features FOLDER --samples CACHE            the table
python -m benchmarks.auto_t tune --photos PHOTOS --features FOLDER --samples CACHE --write    and ctsr/assess/tuned.py
python -m benchmarks.auto_t pairs --folder REALSR --features FOLDER    of pairs in LR and HR, constants as they are
python -m benchmarks.auto_t time                                       what it adds to a run

FOLDER holds VGG16's features and the weights of LPIPS and DISTS, as for `ctsr evaluate --features`; LPIPS is of VGG16
with DISTS's pooling, as in training. Inputs are degraded in ways that training does not use: disc and motion blur,
Poisson noise, Lanczos, WebP. Cost is LPIPS - rate * PSNR, with the rate at which both ends of the dial are equally good
in the mean. Constants are fitted to the costs of cells of 16 pixels; pictures are made and scored as a whole, each by
constants of which no photograph of its sixth was a part.
"""

import io
import statistics
import time as clock
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from torch import Tensor, nn

from ctsr import CTSRPipeline
from ctsr.assess import tuned
from ctsr.assess.auto_t import LIMIT, contrast, traits
from ctsr.assess.perceptual import dists_distance, lpips_map, products, read_heads, read_shares
from ctsr.assess.vgg import VGG_FILE, VGGFeatures
from ctsr.images.inputs import from_pil
from ctsr.images.tensors import as_pil
from training.data.photos import is_held_back, photo_paths, read_photo

SIDE, EDGE, CELL = 384, 96, 16
"""Pixels of the ground truth, of its border that is not scored, and of the cells that are fitted to."""
FOLDS, HIDDEN, STEPS, DECAY = 6, 6, 150, 1e-3
FIRST = 3
"""Crop of each photograph: features were first looked for on those before, and compared on these too."""
DIALS = (0.0, 0.25, 0.5, 0.75, 1.0)
POWERS = torch.tensor(DIALS)[:, None] ** torch.arange(3)
TUNED = Path(tuned.__file__)
NAMES = ("MEAN", "DEVIATION", "HIDDEN", "OUT", "BIAS")
app = typer.Typer(add_completion=False)
Features = Annotated[Path, typer.Option(help="the folder of VGG16, LPIPS and DISTS")]
Scores = tuple[float, float, float]
"""PSNR, LPIPS and DISTS."""
Rule = dict[str, Any]
"""The constants of `tuned`, by name."""


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


@dataclass(frozen=True)
class Sample:
    """A crop of a photograph: [1, 3, 384, 384], and the input that was made of it."""

    name: str
    number: int
    crop: int
    truth: Tensor
    small: Tensor

    @property
    def fold(self) -> int:
        """The same for every crop of a photograph."""
        return zlib.crc32(self.name.encode()) % FOLDS


def drawn(photos: Path, crops: int) -> Iterator[Sample]:
    """Crops of all held-back photographs, the same every time."""
    names = [name for name in photo_paths(photos) if is_held_back(name)]
    for number, name in enumerate(names):
        pixels = read_photo(photo_paths(photos)[name])
        if pixels is None or min(pixels.shape[:2]) < SIDE:
            continue
        for crop in range(FIRST, FIRST + crops):
            rng = np.random.default_rng(1000 * crop + number)
            top, left = (int(rng.integers(0, side - SIDE + 1)) for side in pixels.shape[:2])
            truth = from_pil(Image.fromarray(pixels[top : top + SIDE, left : left + SIDE]))
            yield Sample(name, number, crop, truth, degrade(truth, rng))


class Judge:
    """LPIPS, squared error and DISTS against one ground truth [1, 3, H, W]."""

    def __init__(self, truth: Tensor, folder: Path):
        self.truth, self.features = truth, open_features(folder / VGG_FILE)
        self.heads = read_heads(folder / "lpips_vgg_lin.npz")
        self.shares, self.seen = read_shares(folder), self.features(2 * truth - 1)

    def maps(self, made: Tensor) -> tuple[Tensor, Tensor, float]:
        """LPIPS and squared error by cell, and DISTS."""
        levels = [products(*pair) for pair in zip(self.features(2 * made - 1), self.seen, strict=True)]
        cells = (made.shape[-2] // CELL, made.shape[-1] // CELL)
        near = [F.adaptive_avg_pool2d(lpips_map(of, head), cells) for of, head in zip(levels, self.heads, strict=True)]
        error = F.adaptive_avg_pool2d((made - self.truth).square().mean(1), cells)
        dists = float(dists_distance([products(made, self.truth), *levels], self.shares))
        return torch.stack(near).sum(0)[0], error[0], dists

    def score(self, made: Tensor) -> Scores:
        """PSNR, LPIPS and DISTS of the whole."""
        near, error, dists = self.maps(made)
        return float(psnr(error.mean())), float(near.mean()), dists


def psnr(error: Tensor) -> Tensor:
    """dB of a mean squared error."""
    return -10 * error.clamp_min(1e-10).log10()


def scored(picture: Tensor) -> Tensor:
    """Its middle."""
    return picture[..., EDGE : SIDE - EDGE, EDGE : SIDE - EDGE].contiguous()


def measure(sample: Sample, pipe: CTSRPipeline, folder: Path, cache: Path) -> dict[str, Tensor]:
    """Scores of a sample at all of `DIALS`, by cell, kept in a file; its features and fold."""
    about = {"features": features_of(sample.small), "fold": torch.tensor(sample.fold)}
    file = cache / f"{sample.number:03d}_{sample.crop}.pt"
    if file.exists():
        return {**torch.load(file), **about}
    judge = Judge(scored(sample.truth), folder)
    each = [judge.maps(scored(made)) for made in pipe.sweep(sample.small, (SIDE, SIDE), DIALS)]
    near, error, dists = (list(column) for column in zip(*each, strict=True))
    row = {"lpips": torch.stack(near), "error": torch.stack(error), "dists": torch.tensor(dists)}
    torch.save(row, file)
    return {**row, **about}


@dataclass(frozen=True)
class Table:
    """All samples: features [n, cells, 9]; LPIPS, squared error [n, 5, cells]; DISTS [n, 5]; folds [n]; LPIPS a dB."""

    features: Tensor
    lpips: Tensor
    error: Tensor
    dists: Tensor
    fold: Tensor
    rate: float

    @property
    def costs(self) -> Tensor:
        """Of every picture at all of `DIALS`, [n, 5]."""
        return self.lpips.mean(2) - self.rate * psnr(self.error.mean(2))


def tabulate(rows: Sequence[dict[str, Tensor]]) -> Table:
    """What constants are fitted to."""
    columns = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    near, error = columns["lpips"].flatten(2), columns["error"].flatten(2)
    return Table(
        columns["features"], near, error, columns["dists"], columns["fold"], rate_of(near.mean(2), error.mean(2))
    )


def rate_of(near: Tensor, error: Tensor) -> float:
    """LPIPS that a dB is worth, by both [n, 5] at all of `DIALS`."""
    quality = psnr(error)
    return min(max(float((near[:, 0] - near[:, -1]).mean() / (quality[:, 0] - quality[:, -1]).mean()), 0.005), 0.2)


def features_of(small: Tensor) -> Tensor:
    """`tuned.FEATURES` of every scored cell, [cells, 9]."""
    local = contrast(small)
    known = torch.tensor([*traits(small).features, *local.mean((1, 2)).tolist()])
    edge = EDGE // 4
    cells = F.avg_pool2d(local[:, edge:-edge, edge:-edge], CELL // 4).flatten(1).T
    return torch.cat([known.expand(len(cells), -1), cells], 1)


def fit(table: Table, rows: Tensor) -> Rule:
    """The constants of least mean cost over some rows."""
    flat = table.features[rows].flatten(0, 1)
    mean, deviation = flat.mean(0), flat.std(0).clamp_min(1e-3)
    known = ((table.features[rows] - mean) / deviation).clamp(-LIMIT, LIMIT)
    torch.manual_seed(0)
    hidden, out = nn.Linear(len(mean), HIDDEN), nn.Linear(HIDDEN, 1)
    nn.init.zeros_(out.weight)
    weights = [*hidden.parameters(), *out.parameters()]
    near, error = (torch.linalg.pinv(POWERS) @ of[rows] for of in (table.lpips, table.error))  # parabolas of t
    spread = float(table.costs.std(1).mean())
    optimizer = torch.optim.Adam(weights, 0.08)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        t = torch.sigmoid(out(torch.tanh(hidden(known)))[..., 0])
        powers = torch.stack([torch.ones_like(t), t, t * t], 1)
        cost = (near * powers).sum(1).mean(1) - table.rate * psnr((error * powers).sum(1).mean(1))
        loss = cost.mean() / spread + DECAY * sum(weight.square().sum() for weight in weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    rows_of_hidden = torch.cat([hidden.weight, hidden.bias[:, None]], 1)
    values = (mean, deviation, rows_of_hidden, out.weight[0], out.bias[0])
    return {name: rounded(value.tolist()) for name, value in zip(NAMES, values, strict=True)}


def rounded(value: Any) -> Any:
    """Tuples of numbers of four digits."""
    return tuple(rounded(x) for x in value) if isinstance(value, list) else round(value, 4)


def put(rule: Rule) -> None:
    """Makes automatic t follow a rule from now on."""
    for name, value in rule.items():
        setattr(tuned, name, value)


def automatic(pipe: CTSRPipeline, small: Tensor) -> Tensor:
    """The result at automatic t."""
    return pipe(small, t="auto", output_type="pt").images


@app.command()
def tune(
    photos: Annotated[Path, typer.Option(help="the folder of photographs")],
    features: Features,
    samples: Annotated[Path, typer.Option(help="a folder that scores are kept in")],
    crops: Annotated[int, typer.Option(help="of each photograph")] = 9,
    write: Annotated[bool, typer.Option(help="ctsr/assess/tuned.py anew")] = False,
) -> None:
    """The table of held-back photographs; `auto` is judged by constants that were fitted on the others."""
    samples.mkdir(parents=True, exist_ok=True)
    pipe = CTSRPipeline.mini()
    with torch.no_grad():
        table = tabulate([measure(sample, pipe, features, samples) for sample in drawn(photos, crops)])
    rules, found = [fit(table, table.fold != fold) for fold in range(FOLDS)], list[Scores]()
    for sample in drawn(photos, crops):
        put(rules[sample.fold])
        with torch.no_grad():
            found.append(Judge(scored(sample.truth), features).score(scored(automatic(pipe, sample.small))))
    tell(torch.stack([psnr(table.error.mean(2)), table.lpips.mean(2), table.dists], 2), torch.tensor(found), table.rate)
    if write:
        write_tuned(fit(table, table.fold >= 0))


@app.command()
def pairs(
    folder: Annotated[Path, typer.Option(help="with folders LR and HR")],
    features: Features,
    every: Annotated[int, typer.Option(help="1: all of them, 4: every fourth")] = 1,
) -> None:
    """The table of pairs of pictures, by the constants as they are; report it, do not tune on it."""
    pipe, fixed, found = CTSRPipeline.mini(), list[list[Scores]](), list[Scores]()
    for file in sorted((folder / "LR").iterdir())[::every]:
        small, truth = (from_pil(Image.open(path).convert("RGB")) for path in (file, folder / "HR" / file.name))
        with torch.no_grad():
            judge, size = Judge(truth, features), (truth.shape[-2], truth.shape[-1])
            fixed.append([judge.score(made) for made in pipe.sweep(small, size, DIALS)])
            found.append(judge.score(automatic(pipe, small)))
    table = torch.tensor(fixed)
    tell(table, torch.tensor(found), rate_of(table[..., 1], 10 ** (-table[..., 0] / 10)))


def tell(fixed: Tensor, auto: Tensor, rate: float) -> None:
    """The table by PSNR, LPIPS and DISTS at all of `DIALS` [n, 5, 3] and at automatic t [n, 3]."""
    costs, cost = fixed[..., 1] - rate * fixed[..., 0], auto[:, 1] - rate * auto[:, 0]
    best, oracle = costs.min(1).values, costs.argmin(1)
    print(f"{len(auto)} pictures; 1 dB is worth {rate:.4f} LPIPS")
    for index, t in enumerate(DIALS):
        show(f"t = {t:g}", costs[:, index] - best, fixed[:, index])
    show("auto", cost - best, auto)
    show("oracle", best - best, fixed[torch.arange(len(auto)), oracle])
    least = float((costs.mean(0) - best.mean()).min())
    print(f"regret of auto is {float((cost - best).mean()) / least:.2f} of the best fixed t's")
    short = fixed[..., 0].min(1).values - auto[:, 0]
    far = auto[:, 2] - fixed[..., 2].max(1).values
    print(f"worse than the worst fixed t: by {float(short.max()):.3f} dB and {float(far.max()):.4f} DISTS at most,")
    print(f"by more than .1 dB or .01 DISTS on {int(((short > 0.1) | (far > 0.01)).sum())}")


def show(name: str, regret: Tensor, scores: Tensor) -> None:
    """One line of the table."""
    quality, near, structure = scores.mean(0).tolist()
    print(f"{name:8} regret {float(regret.mean()):.4f}  PSNR {quality:.3f}  LPIPS {near:.4f}  DISTS {structure:.4f}")


def write_tuned(rule: Rule) -> None:
    """The constants, under the docstring and the names that the file has."""
    text = TUNED.read_text(encoding="utf-8")
    lines = [f"{name} = {written(value)}" for name, value in rule.items()]
    TUNED.write_text(text[: text.index("MEAN =")] + "\n".join(lines) + "\n", encoding="utf-8")


def written(value: Any) -> str:
    """A number, a row of them, or rows in lines."""
    if isinstance(value, tuple) and isinstance(value[0], tuple):
        return "(\n" + "".join(f"    {row},\n" for row in value) + ")"
    return str(value)


@app.command()
def time(height: int = 768, width: int = 1024, runs: int = 9) -> None:
    """Median seconds of a run at t = .5 and at automatic t, one after the other."""
    pipe, small = CTSRPipeline.mini(), torch.rand(1, 3, height // 4, width // 4)
    taken: dict[Any, list[float]] = {0.5: [], "auto": []}
    for _ in range(runs + 1):
        for t, seconds in taken.items():
            start = clock.perf_counter()
            pipe(small, t=t, output_type="pt")
            seconds.append(clock.perf_counter() - start)
    fixed, auto = (statistics.median(seconds[1:]) for seconds in taken.values())
    print(f"{width}x{height}: t = .5 {fixed:.3f} s, auto {auto:.3f} s: {auto / fixed - 1:.1%} more")


if __name__ == "__main__":
    app()
