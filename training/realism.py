"""Stage 2: the realistic end, a simple honest recipe.

    python -m training.realism --photos PHOTOS --fidelity RUNS/fidelity --run.out RUNS/realism --run.steps 1200

The UNet of stage 1 splits its ends: the output group o moves to the photograph itself (not the slightly soft picture
that the LR was made from) under L1, gradient L1 and an adversarial term; delta learns the way back to the faithful
end, which keeps stage 1's loss. kappa stays zero.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro

from ctsr.families import blend
from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini
from ctsr.models.unet_mini import TimeConditionedUNetMini
from training.adversarial import PatchDiscriminator, discriminator_loss, feature_matching
from training.autoencoder import gradient_l1, parameter_groups
from training.fidelity import fidelity_loss
from training.loop import Run, Sample, averaged, fit, rate, update
from training.one_step import OneStep, Pairs, enlarge, held_back_pairs, make_pair, validate
from training.photos import load_photos


@dataclass(frozen=True)
class Recipe:
    """Defaults for two CPU cores."""

    photos: Path
    fidelity: Path
    run: Run
    pairs: Pairs = field(default_factory=Pairs)
    peak_rate: float = 2e-4  # the networks start trained
    autoencoder_factor: float = 0.3
    discriminator_rate: float = 3e-4
    ema: float = 0.995
    l2_weight: float = 5.0
    gradient_weight: float = 0.5
    adversarial_weight: float = 0.03
    matching_weight: float = 0.5
    ramp: int = 200  # steps in which the discriminator finds its feet


def train(recipe: Recipe) -> None:
    """Trains, or goes on from the last checkpoint; at the end saves the averaged networks."""
    photos = load_photos(recipe.photos)
    torch.manual_seed(recipe.pairs.seed)
    model = OneStep(
        TimeAwareAutoencoderMini.from_pretrained(recipe.fidelity / "vae", low_cpu_mem_usage=False),
        TimeConditionedUNetMini.from_pretrained(recipe.fidelity / "unet", low_cpu_mem_usage=False),
    ).to(memory_format=torch.channels_last)
    critic = PatchDiscriminator().to(memory_format=torch.channels_last)
    average = averaged(model, recipe.ema)
    groups = [*parameter_groups(model.vae, recipe.autoencoder_factor), {"params": list(model.unet.parameters())}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-3)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), betas=(0.5, 0.99), weight_decay=0)
    pairs = held_back_pairs(photos, recipe.pairs)

    def step_of(step: int, batch: Sample) -> dict[str, float]:
        soft, sharp = (batch[name].contiguous(memory_format=torch.channels_last) for name in ("soft", "sharp"))
        ramp = min(1.0, step / recipe.ramp)
        with torch.autocast("cpu", torch.bfloat16):
            enlarged = enlarge(batch["lr"])
            ends = model(batch["lr"])
            x0, x1 = model.decode(blend(ends, 0.0)), model.decode(blend(ends, 1.0))
            critic.requires_grad_(False)
            score, features = critic(x0, enlarged)
            with torch.no_grad():
                real_features = critic(sharp, enlarged)[1]
        faithful = fidelity_loss(x1, soft, recipe.l2_weight)
        pixels = F.l1_loss(x0, sharp) + recipe.gradient_weight * gradient_l1(x0, sharp)
        matching = feature_matching(features, real_features)
        adversarial = ramp * (recipe.matching_weight * matching - recipe.adversarial_weight * score.mean())
        update(optimizer, faithful + pixels + adversarial, rate(step, recipe.run.steps, recipe.peak_rate))
        average.update_parameters(model)
        critic.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            real, fake = critic(sharp, enlarged)[0], critic(x0.detach(), enlarged)[0]
        critic_loss = discriminator_loss(real, fake)
        update(critic_optimizer, critic_loss, recipe.discriminator_rate)
        losses = {"faithful": faithful, "pixels": pixels, "matching": matching, "critic": critic_loss}
        return {name: loss.item() for name, loss in losses.items()}

    parts = {
        "model": model,
        "average": average,
        "optimizer": optimizer,
        "critic": critic,
        "critic_optimizer": critic_optimizer,
    }
    make = lambda index: make_pair(photos, recipe.pairs, index)  # noqa: E731
    if fit(recipe.run, make, step_of, parts, lambda: validate(average.module, pairs)):
        average.module.vae.save_pretrained(recipe.run.out / "vae")
        average.module.unet.save_pretrained(recipe.run.out / "unet")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(tyro.cli(Recipe))
