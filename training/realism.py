"""Stage 2: the realistic end, by a simple recipe that needs no second network.

    python -m training.realism --photos PHOTOS --fidelity RUNS/fidelity --run.out RUNS/realism \\
        --run.steps 600 --pairs.crop 128

The networks of stage 1 are frozen, and with them the faithful end; only the output group delta learns, from zero, the
way from the realistic end to the faithful one. The realistic end aims at the photograph itself, not at the slightly
soft picture that the LR was made from, and at one of more acutance: an unsharp mask gives back some of the contrast at
fine scales that the mean over all photographs that fit a blurred picture has lost. L2, whose best answer is the mean.
At the end o takes delta in, so that z0 = z_L - o is the realistic end. kappa stays zero.
"""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini
from ctsr.models.unet_mini import TimeConditionedUNetMini
from training.degradation import gaussian
from training.loop import Run, Sample, averaged, fit, rate, update
from training.one_step import OneStep, Pairs, held_back_pairs, make_pair, validate
from training.photos import Photos, load_photos


@dataclass(frozen=True)
class Recipe:
    """Defaults for two CPU cores."""

    photos: Path
    fidelity: Path
    run: Run
    pairs: Pairs = field(default_factory=Pairs)
    peak_rate: float = 1e-3  # one linear layer
    ema: float = 0.99
    sharpen_sigma: float = 2.0  # px: the scale below which a x4 enlargement has lost most
    sharpen_amount: float = 1.25  # lowest NIQE before halos show


def sharpen(x: Tensor, sigma: float, amount: float) -> Tensor:
    """x + amount * (x - blurred x) of [3, H, W] in [-1, 1], clamped."""
    blurred = torch.from_numpy(gaussian(x.permute(1, 2, 0).numpy(), sigma)).permute(2, 0, 1)
    return (x + amount * (x - blurred)).clamp(-1, 1)


def make_sample(photos: Photos, recipe: Recipe, index: int) -> Sample:
    """A pair of `one_step.make_pair` with the `sharpened` photograph."""
    pair = make_pair(photos, recipe.pairs, index)
    return {**pair, "sharpened": sharpen(pair["sharp"], recipe.sharpen_sigma, recipe.sharpen_amount)}


def only_delta(unet: TimeConditionedUNetMini) -> list[nn.Parameter]:
    """Freezes all but the group delta of `conv_out`; returns the parameters to optimise, without weight decay."""
    unet.requires_grad_(False)
    parameters = [unet.conv_out.weight, cast(nn.Parameter, unet.conv_out.bias)]
    for parameter in parameters:
        mask = torch.zeros_like(parameter)
        mask.chunk(3)[1].fill_(1)
        parameter.requires_grad_(True).register_hook(mask.mul)
    return parameters


@torch.no_grad()
def folded(model: OneStep) -> OneStep:
    """A copy in which o has taken delta in: z0 = z_L - o is the realistic end, z0 + delta the faithful one."""
    out = copy.deepcopy(model)
    for parameter in (out.unet.conv_out.weight, cast(nn.Parameter, out.unet.conv_out.bias)):
        o, delta, _ = parameter.chunk(3)
        o += delta
    return out


def train(recipe: Recipe) -> None:
    """Trains, or goes on from the last checkpoint; at the end saves the averaged, folded networks."""
    photos = load_photos(recipe.photos)
    torch.manual_seed(recipe.pairs.seed)
    model = OneStep(
        TimeAwareAutoencoderMini.from_pretrained(recipe.fidelity / "vae", low_cpu_mem_usage=False),
        TimeConditionedUNetMini.from_pretrained(recipe.fidelity / "unet", low_cpu_mem_usage=False),
    ).to(memory_format=torch.channels_last)
    average = averaged(model, recipe.ema)
    model.vae.requires_grad_(False)
    optimizer = torch.optim.AdamW(only_delta(model.unet), betas=(0.9, 0.99), weight_decay=0)
    pairs = held_back_pairs(photos, recipe.pairs)

    def step_of(step: int, batch: Sample) -> dict[str, float]:
        target = batch["sharpened"].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            ends = model(batch["lr"])
            x0 = model.decode(ends.z0 - cast(Tensor, ends.delta))  # before folding, z0 is the faithful end
        loss = F.mse_loss(x0, target)
        update(optimizer, loss, rate(step, recipe.run.steps, recipe.peak_rate))
        average.update_parameters(model)
        return {"loss": loss.item()}

    parts = {"model": model, "average": average, "optimizer": optimizer}
    make = lambda index: make_sample(photos, recipe, index)  # noqa: E731
    if fit(recipe.run, make, step_of, parts, lambda: validate(folded(average.module), pairs)):
        done = folded(average.module)
        done.vae.save_pretrained(recipe.run.out / "vae")
        done.unet.save_pretrained(recipe.run.out / "unet")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(tyro.cli(Recipe))
