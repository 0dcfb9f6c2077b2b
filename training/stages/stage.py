"""What every stage is made of and ends with: its parts, its command line, its scores, its file.

A stage's file holds a `Recipe`, its defaults by name in `RECIPES`, the loss of its networks, and `build`, which makes a
`Stage` of a recipe. `train` does the rest.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
import tyro
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.families import blend
from training.data.datasets import Data, batches_of_one, open_photos
from training.data.photos import Photos, fingerprint
from training.engine.loop import Report, fit
from training.engine.processes import agree, checksum, describe, means
from training.engine.run import Run
from training.engine.sources import Sample, Source
from training.engine.turn import Turn
from training.model.adapt import Adapt, finish
from training.model.one_step import OneStep, enlarge

RESULT = "model.safetensors"
SHOWN = 4  # pictures in a report
DIAL = (0.0, 0.5, 1.0)


class StageRecipe(Protocol):
    """What `train` reads of a recipe."""

    @property
    def data(self) -> Data: ...

    @property
    def run(self) -> Run: ...


RecipeT = TypeVar("RecipeT", bound=StageRecipe)


@dataclass(frozen=True)
class Stage:
    """The parts of a stage.

    Attributes:
        turns: of a step, in order; the weights of the first are averaged.
        source: the batches, given the photographs to train on.
        validate: figures of the averaged weights on held-back pairs, of which every process has its own share.
        write: called by every process with its held-back pairs when all steps are done; leaves the networks in
            `run.out`.
    """

    turns: Sequence[Turn]
    source: Callable[[Photos], Source]
    validate: Callable[[Sequence[Sample]], Report]
    write: Callable[[Sequence[Sample]], object]


def train(build: Callable[[RecipeT], Stage], recipe: RecipeT) -> None:
    """Trains what `build` makes of the recipe, or goes on from the last checkpoint; at the end writes the networks."""
    set_seed(recipe.run.seed)
    stage = build(recipe)
    photos, pairs = open_photos(recipe.data)
    weights = checksum(pair for turn in stage.turns for pair in turn.module.state_dict().items())
    agree(describe(recipe, photographs=fingerprint(photos), weights=weights))
    if fit(recipe.run, stage.source(photos), stage.turns, lambda: stage.validate(pairs)):
        stage.write(pairs)
    PartialState().destroy_process_group()


def read_recipe(recipes: Mapping[str, tuple[str, RecipeT]]) -> RecipeT:
    """The recipe that the command line chooses by name and changes by its options; `recipes`: name -> help, recipe."""
    return tyro.extras.overridable_config_cli(dict(recipes))


def main(recipes: Mapping[str, tuple[str, RecipeT]], build: Callable[[RecipeT], Stage]) -> None:
    """`python -m training.stages.STAGE mini|sd21 --option ...`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(build, read_recipe(recipes))


def video_luma(x: Tensor) -> Tensor:
    """BT.601 luma in 16..235 of [B, 3, H, W] in [-1, 1]."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=x.device).view(1, 3, 1, 1)
    return (weights * (x.clamp(-1, 1) + 1) / 2).sum(1, keepdim=True) + 16


def psnr_y(x: Tensor, y: Tensor) -> float:
    """Luma PSNR in dB of [-1, 1] pictures."""
    return float(10 * torch.log10(255**2 / F.mse_loss(video_luma(x.float()), video_luma(y.float())).clamp_min(1e-10)))


def validate(
    model: OneStep,
    pairs: Sequence[Sample],
    dial: Sequence[float] = DIAL,
    latent: Callable[[Tensor, float], Tensor] | None = None,
) -> Report:
    """Mean luma PSNR on held-back pairs, bicubic and along the dial, and the first few as pictures.

    Args:
        model: on any device; one that knows the softness of a ground truth is told each pair's, as in training.
        pairs: this process's share of `pairs.held_back_pairs`; the figures are of all.
        dial: values of t.
        latent: the latent of a low-resolution picture at t; by default the blend of the model's own endpoints.
    """
    rows: dict[str, list[float]] = {"bicubic": [], **{f"t={t:g}": [] for t in dial}}
    pictures: dict[str, list[Tensor]] = {}
    for number, sample in enumerate(batches_of_one(pairs, model.unet)):
        at = partial(latent, sample["lr"]) if latent else partial(blend, model(sample["lr"], model.told(sample)))
        results = {"bicubic": enlarge(sample["lr"], model.scale), **{f"t={t:g}": model.decode(at(t)) for t in dial}}
        for name, picture in results.items():
            rows[name].append(psnr_y(picture, sample["soft"]))
        if number < SHOWN:
            for name, picture in {**results, "HR": sample["sharp"]}.items():
                pictures.setdefault(name, []).append(picture)
    return Report(means(rows), {name: torch.cat(row) for name, row in pictures.items()})


def save(pipeline: CTSRPipeline, out: Path) -> Path:
    """Writes the stage's networks as the library's single file, fp32, and returns its path; one process writes."""
    path = out / RESULT
    if PartialState().is_main_process:
        pipeline.save_single_file(path, torch.float32)
    return path


def finish_and_save(pipeline: CTSRPipeline, model: OneStep, adapt: Adapt, out: Path) -> Path:
    """Saves the networks of `model`, which are the pipeline's, in fp32, LoRA merged or kept as `adapt` says."""
    finish(model, adapt)
    return save(pipeline, out)
