"""Which timestep of a TADSR model is how realistic, measured: its dial is neither even nor monotone by itself.

    python -m training.research.calibrate --model RUNS/tadsr/model.safetensors \\
        --data.photos PHOTOS --write tadsr.safetensors

On held-back pairs, at every tau of a grid:

- fidelity: mean luma PSNR against what the low-resolution picture was made from;
- realism: mean over the pictures of min(r, 1/r), with r = e(result) / e(photograph) and e the mean square of what a
  Gaussian of sigma 1.5 px takes out of BT.601 luma. 1 says as much fine detail as the photograph has; less is worse,
  and so is more. That sigma halves the amplitude at 1/8 cycle a pixel, the finest that the x4 smaller picture holds,
  so e is detail that the model must make up. It says how much detail there is, not whether it is true, and noise
  counts: use it to space the dial of one model, not to rank models.

Realism as a function of tau is made monotone by isotonic regression; of the taus between which that sees no
difference, the one of the highest PSNR stands for all. The inverse, in even steps of realism, is the table t -> tau.
The paper's own sweep (DRealSR, PSNR 29.58, 29.61, 29.17, 29.25, 28.39, 28.47 dB from 100 to 600) shows the need.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from accelerate import PartialState
from accelerate.utils import tqdm
from scipy.optimize import isotonic_regression
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.load import load_pipeline
from ctsr.whole_file import whole_file
from training.data.datasets import Data, batches_of_one, open_photos
from training.engine.processes import means, total
from training.engine.sources import Sample
from training.losses.reconstruction import gaussian_blur
from training.model.one_step import OneStep, enlarge
from training.stages.stage import psnr_y, video_luma

logger = logging.getLogger(__name__)

TIMESTEPS = tuple(range(100, 601, 50))
DETAIL = (9, 1.5)  # size and sigma in px of the blur that takes the fine detail out
SMALLEST_SPAN = 0.01  # of realism; a dial over less would turn measurement noise
DIAL = tuple(round(0.1 * step, 1) for step in range(11))


@dataclass(frozen=True)
class Point:
    """Means over the held-back pairs at one timestep: PSNR of luma in dB, and realism in (0, 1]."""

    timestep: int
    psnr_y: float
    realism: float


@dataclass(frozen=True)
class Calibration:
    """Measured points, and the table drawn from them.

    Attributes:
        points: by rising timestep.
        fitted: realism of each point, made monotone.
        knots: points of different fitted realism, both of them rising.
    """

    points: tuple[Point, ...]
    fitted: tuple[float, ...]
    knots: tuple[tuple[int, float], ...]

    @property
    def has_dial(self) -> bool:
        """Whether realism grows with the timestep, by more than `SMALLEST_SPAN`."""
        return self.knots[-1][1] - self.knots[0][1] > SMALLEST_SPAN

    def timestep(self, t: float) -> int:
        """tau of a dial t in [0, 1]: 0 most realistic, 1 most faithful, even in realism between."""
        timesteps, realism = zip(*self.knots, strict=True)
        return round(float(np.interp(realism[-1] + t * (realism[0] - realism[-1]), realism, timesteps)))

    @property
    def ends(self) -> tuple[int, int]:
        """tau at t = 0 and at t = 1."""
        return self.timestep(0.0), self.timestep(1.0)


def detail(x: Tensor) -> Tensor:
    """e [B]: mean square of luma (16..235) less its blurred self, of [B, 3, H, W] in [-1, 1]."""
    y = video_luma(x.float())
    return (y - gaussian_blur(y, *DETAIL)).square().mean(dim=(1, 2, 3))


def realism(x: Tensor, photograph: Tensor) -> float:
    """Mean of min(r, 1/r), r = e(x) / e(photograph), of [B, 3, H, W] in [-1, 1]; in (0, 1]."""
    r = detail(x).clamp_min(1e-6) / detail(photograph).clamp_min(1e-6)
    return float(torch.minimum(r, 1 / r).mean())


@torch.no_grad()
def measure(model: OneStep, pairs: Sequence[Sample], timesteps: Sequence[int]) -> list[Point]:
    """The model on every pair at every timestep.

    Args:
        model: encoder and UNet run at the same timestep; on any device, without autocast.
        pairs: this process's share of `pairs.held_back_pairs`; the points are of all.
        timesteps: tau in 0..999.
    """
    points: list[Point] = []
    for timestep in tqdm(sorted(set(timesteps)), desc="tau"):
        rows: dict[str, list[float]] = {"psnr_y": [], "realism": []}
        for sample in batches_of_one(pairs, model.unet):
            x = model.decode(model.x0(model.encode(enlarge(sample["lr"], model.scale), timestep), timestep))
            rows["psnr_y"].append(psnr_y(x, sample["soft"]))
            rows["realism"].append(realism(x, sample["sharp"]))
        points.append(Point(timestep, **means(rows)))
    return points


def fit(points: Sequence[Point]) -> Calibration:
    """The table of points measured, by rising timestep."""
    fitted = isotonic_regression([point.realism for point in points]).x
    knots: list[tuple[int, float]] = []
    for level in np.unique(fitted):
        alike = [point for point, value in zip(points, fitted, strict=True) if value == level]
        knots.append((max(alike, key=lambda point: point.psnr_y).timestep, float(level)))
    return Calibration(tuple(points), tuple(float(value) for value in fitted), tuple(knots))


def calibrate(pipeline: CTSRPipeline, pairs: Sequence[Sample], timesteps: Sequence[int]) -> Calibration:
    """Measures and fits.

    Raises:
        ValueError: not a TADSR model, no held-back photograph, or no timesteps.
    """
    family = pipeline.config["family"]
    if family != "tadsr":
        raise ValueError(f"Only a model of family tadsr has a timestep to calibrate, not one of {family!r}.")
    if not total(len(pairs)):
        raise ValueError("None of the photographs is held back: give a folder of more (one in twelve is).")
    if not timesteps:
        raise ValueError("There is nothing to measure: give --timesteps.")
    model = OneStep(pipeline).to(PartialState().device)
    return fit(measure(model, pairs, timesteps))


def show(calibration: Calibration) -> str:
    """The measured curve and the table, as text."""
    points = [
        f"{point.timestep:5d}  {point.psnr_y:7.3f}  {point.realism:7.4f}  {fitted:7.4f}"
        for point, fitted in zip(calibration.points, calibration.fitted, strict=True)
    ]
    table = [f"{t:5.1f}  {calibration.timestep(t):5d}" for t in DIAL]
    return "\n".join(["  tau   PSNR-Y  realism   fitted", *points, "", "    t    tau", *table])


def write_table(calibration: Calibration, path: Path) -> None:
    """As JSON: measured points, and the table t -> tau. The file appears whole or not at all."""
    rows: list[dict[str, Any]] = [
        {**asdict(point), "fitted": fitted}
        for point, fitted in zip(calibration.points, calibration.fitted, strict=True)
    ]
    table = [{"t": t, "timestep": calibration.timestep(t)} for t in DIAL]
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"points": rows, "table": table}, indent=1) + "\n", encoding="utf-8")


def store(pipeline: CTSRPipeline, calibration: Calibration, path: Path) -> None:
    """The pipeline with its dial between the calibration's ends, and the table for `CTSRPipeline.at`, as a file, fp32.

    Raises:
        ValueError: realism does not grow with the timestep, so that there is no dial.
    """
    if not calibration.has_dial:
        raise ValueError("Realism hardly grows with tau: there is no dial. Train longer, or give other --timesteps.")
    table = [calibration.timestep(t) for t in DIAL]
    pipeline.register_to_config(encoder_timesteps=list(calibration.ends), dial_timesteps=table)
    pipeline.save_single_file(path, torch.float32)


@dataclass(frozen=True)
class Job:
    """What to calibrate.

    Attributes:
        model: single file of family tadsr.
        data: photographs, of which those held back are used.
        timesteps: tau to measure.
        write: where to write the model with its dial between the ends that were found.
        table: where to write the figures; by default beside the model.
    """

    model: Path
    data: Data
    timesteps: tuple[int, ...] = TIMESTEPS
    write: Path | None = None
    table: Path | None = None


def main(job: Job) -> None:
    """Prints and writes the table; writes the model where asked."""
    pipeline = load_pipeline(job.model, torch.float32)
    calibration = calibrate(pipeline, open_photos(job.data)[1], job.timesteps)
    print(show(calibration))
    write_table(calibration, job.table or job.model.with_suffix(".calibration.json"))
    if job.write is not None:
        store(pipeline, calibration, job.write)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(tyro.cli(Job))
