"""The dial of TADSR or OFTSR as its paper has it, beside the one that blends the latents of its two ends.

    python -m training.research.dials --model RUNS/tadsr/model.safetensors --data.photos PHOTOS

The paper's runs encoder and UNet at the timestep of t (`CTSRPipeline.at`): exact, and every t costs as much as the
first. The blended one costs a decode for another t. On held-back pairs, for every t: luma PSNR and realism
(`calibrate`) of both, and how far their latents are apart, RMS over that of the way between the ends.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.families import blend
from ctsr.load import load_pipeline
from training.data.datasets import Data, batches_of_one, open_photos
from training.engine.processes import means
from training.engine.run import own_device
from training.engine.sources import Sample
from training.model.one_step import OneStep
from training.research.calibrate import realism
from training.research.oftsr import FlowModel
from training.stages.stage import psnr_y

TS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Row:
    """Means over the pairs at one t.

    Attributes:
        t: of the dial.
        timestep: that the paper's runs at.
        exact, blended: PSNR of luma in dB, and realism in (0, 1].
        apart: RMS distance of their latents, in ways between the ends.
    """

    t: float
    timestep: int
    exact: tuple[float, float]
    blended: tuple[float, float]
    apart: float


def model_of(pipeline: CTSRPipeline) -> OneStep:
    """As the family trains."""
    model = FlowModel(pipeline, seed=0) if pipeline.family.name == "oftsr" else OneStep(pipeline)
    return model.to(own_device())


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.float().square().mean().sqrt())


@torch.no_grad()
def compare(pipeline: CTSRPipeline, pairs: Sequence[Sample], ts: Sequence[float] = TS) -> list[Row]:
    """Both dials at every t.

    Args:
        pipeline: of family tadsr or oftsr.
        pairs: this process's share of `pairs.held_back_pairs`; the rows are of all.
        ts: values of t.

    Raises:
        ValueError: a family whose dial is no timestep.
    """
    ends = model_of(pipeline)
    rows: list[Row] = []
    for t in ts:
        exact, found = model_of(pipeline.at(t)), {name: list[float]() for name in ("p", "r", "pb", "rb", "apart")}
        for sample in batches_of_one(pairs, exact.unet):
            both = ends(sample["lr"])
            z, blended = exact(sample["lr"]).z0, blend(both, t)
            for names, latents in ((("p", "r"), z), (("pb", "rb"), blended)):
                x = exact.decode(latents)
                found[names[0]].append(psnr_y(x, sample["soft"]))
                found[names[1]].append(realism(x, sample["sharp"]))
            found["apart"].append(rms(z - blended) / max(1e-9, rms(blend(both, 1.0) - both.z0)))
        mean = means(found)
        (timestep,) = pipeline.at(t).family.timesteps
        rows.append(Row(t, timestep, (mean["p"], mean["r"]), (mean["pb"], mean["rb"]), mean["apart"]))
    return rows


def show(rows: Sequence[Row]) -> str:
    """As a table."""
    lines = [
        f"{row.t:4.2f}  {row.timestep:4d}  {row.exact[0]:6.2f} {row.exact[1]:6.3f}  {row.blended[0]:6.2f} "
        f"{row.blended[1]:6.3f}  {row.apart:6.3f}"
        for row in rows
    ]
    return "\n".join(["   t   tau  exact: PSNR-Y, realism  blended  apart", *lines])


def main(model: Path, data: Data) -> None:
    """Prints the table.

    Args:
        model: single file of family tadsr or oftsr.
        data: photographs, of which those held back are used.
    """
    print(show(compare(load_pipeline(model, torch.float32), open_photos(data)[1])))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    tyro.cli(main)
