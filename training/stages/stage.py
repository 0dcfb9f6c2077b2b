"""What the scripts of all stages share at their ends: the command line, validation, the file they leave."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from accelerate import PartialState
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.families import blend
from training.data.data import batched
from training.engine.loop import Report
from training.engine.sources import Sample
from training.model.one_step import OneStep, enlarge

RecipeT = TypeVar("RecipeT")
RESULT = "model.safetensors"
SHOWN = 4


def main(recipes: Mapping[str, tuple[str, RecipeT]], train: Callable[[RecipeT], None]) -> None:
    """`python -m training.stages.STAGE mini|sd21 --option ...`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(tyro.extras.overridable_config_cli(dict(recipes)))


def luma(x: Tensor) -> Tensor:
    """BT.601 luma in 16..235 of [B, 3, H, W] in [-1, 1]."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=x.device).view(1, 3, 1, 1)
    return (weights * (x.clamp(-1, 1) + 1) / 2).sum(1, keepdim=True) + 16


def psnr_y(x: Tensor, y: Tensor) -> float:
    """Luma PSNR in dB of [-1, 1] pictures."""
    return float(10 * torch.log10(255**2 / F.mse_loss(luma(x.float()), luma(y.float())).clamp_min(1e-10)))


def validate(model: OneStep, pairs: Sequence[Sample], dial: Sequence[float] = (0.0, 0.5, 1.0)) -> Report:
    """Mean luma PSNR on held-back pairs, bicubic and along the dial, and the first few as pictures.

    Args:
        model: on any device.
        pairs: of `pairs.held_back_pairs`.
        dial: values of t.
    """
    device = next(model.unet.parameters()).device
    rows: dict[str, list[float]] = {"bicubic": [], **{f"t={t:g}": [] for t in dial}}
    pictures: dict[str, list[Tensor]] = {}
    for number, pair in enumerate(pairs):
        sample = {name: tensor.to(device) for name, tensor in batched(pair).items()}
        truth, ends = sample["soft"], model(sample["lr"])
        results = {f"t={t:g}": model.decode(blend(ends, t)) for t in dial}
        results = {"bicubic": enlarge(sample["lr"]), **results}
        for name, picture in results.items():
            rows[name].append(psnr_y(picture, truth))
        if number < SHOWN:
            for name, picture in {**results, "HR": sample["sharp"]}.items():
                pictures.setdefault(name, []).append(picture)
    figures = {name: float(np.mean(row)) for name, row in rows.items()}
    return Report(figures, {name: torch.cat(row) for name, row in pictures.items()})


def save(pipeline: CTSRPipeline, out: Path) -> Path:
    """Writes the stage's networks as the library's single file, fp32, and returns its path; one process writes."""
    path = out / RESULT
    if PartialState().is_main_process:
        pipeline.save_single_file(path, torch.float32)
    return path
