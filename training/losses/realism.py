"""Realism terms as plug-ins: score distillation (the papers') and an adversarial one, alone, together or neither."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ctsr.convert.prompts import encode_prompts
from training.engine.draws import Draws
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.adversarial import Adversarial, AdversarialTerm
from training.losses.score_networks import RegulariserLora, ScoreNetworks, open_score_networks
from training.losses.vsd import (
    VSD,
    GuidanceLaw,
    RegulariserLoss,
    TimestepLaw,
    VSDTerm,
    constant_guidance,
    random_shift,
    uniform_timesteps,
)
from training.model.adapt import Adapt
from training.model.one_step import is_base, open_pipeline
from training.model.sd21 import NEGATIVE_PROMPT


@dataclass(frozen=True)
class Realism:
    """Which terms, and how strong. The papers have VSD alone; the mini takes what measured best."""

    vsd: VSD = field(default_factory=VSD)
    adversarial: Adversarial = field(default_factory=Adversarial)


class RealismTerms:
    """The terms of weight other than zero, and the turns in which their own networks learn.

    Args:
        settings: weights.
        seed: of the run.
        scores: prior and regulariser; needed by VSD.
        timesteps, guidance: laws of VSD, OSEDiff's by default.
    """

    def __init__(
        self,
        settings: Realism,
        seed: int,
        scores: ScoreNetworks | None = None,
        timesteps: TimestepLaw = uniform_timesteps,
        guidance: GuidanceLaw | None = None,
    ):
        self.settings, self.seed = settings, seed
        self.encode: Callable[[Tensor], Tensor] | None = None
        self.vsd: VSDTerm | None = None
        self.adversarial: AdversarialTerm | None = None
        self.turns: Sequence[Turn] = ()
        if settings.vsd.weight:
            if scores is None:
                raise ValueError("VSD needs a prior: give --prior, or set --realism.vsd.weight 0.")
            self.encode = scores.encode if settings.vsd.moved else None
            law = guidance or constant_guidance(settings.vsd.guidance)
            self.vsd = VSDTerm(scores.prior, scores.regulariser, timesteps, law, scores.negative_prompt)
            own = None if timesteps is uniform_timesteps else timesteps  # TADSR's regulariser follows its law
            loss = RegulariserLoss(scores.network, scores.regulariser, seed, own)
            self.turns = [*self.turns, Turn("regulariser", loss, settings.vsd.peak_rate, scores.groups)]
        if settings.adversarial.weight:
            self.adversarial = AdversarialTerm(settings.adversarial, seed)
            self.turns = [*self.turns, self.adversarial.turn()]

    def judged(self, z: Tensor, x: Tensor, batch: Sample) -> Tensor:
        """Latents for VSD: z [B, C, h, w], or under `VSD.moved` those of the pictures x that it decodes to, moved."""
        return z if self.encode is None else self.encode(random_shift(x, Draws(batch["index"], self.seed)))

    def losses(self, z: Tensor, x: Tensor, batch: Sample, timestep: Tensor | None = None) -> dict[str, Tensor]:
        """Weighted terms of `judged` latents [B, C, h, w] and of pictures [B, 3, H, W]."""
        out: dict[str, Tensor] = {}
        if self.vsd is not None:
            out["vsd"] = self.settings.vsd.weight * self.vsd.loss(z, Draws(batch["index"], self.seed), timestep)
        if self.adversarial is not None:
            out["adversarial"] = self.adversarial.loss(x, batch)
        return out


class RealismRecipe(Protocol):
    """What `open_realism` reads of a stage's recipe."""

    @property
    def run(self) -> Run: ...

    @property
    def start(self) -> str: ...

    @property
    def prior(self) -> Path | None: ...

    @property
    def adapt(self) -> Adapt: ...

    @property
    def realism(self) -> Realism: ...

    @property
    def regulariser_lora(self) -> RegulariserLora | None: ...


def open_realism(
    recipe: RealismRecipe, timesteps: TimestepLaw = uniform_timesteps, guidance: GuidanceLaw | None = None
) -> RealismTerms:
    """The terms that a recipe asks for, with the networks that they need."""
    return RealismTerms(recipe.realism, recipe.run.seed, open_prior(recipe), timesteps, guidance)


def open_prior(recipe: RealismRecipe) -> ScoreNetworks | None:
    """The score networks, if VSD is on; where the recipe names no prior, of the Stable Diffusion folder it starts from.

    Raises:
        ValueError: VSD has no prior, or guidance no text encoder.
    """
    vsd, prior = recipe.realism.vsd, recipe.prior
    if not vsd.weight:
        return None
    if prior is None and is_base(recipe.start):
        prior = Path(recipe.start)
    if prior is None:
        raise ValueError(
            "VSD needs a prior: give --prior, a Stable Diffusion folder or a file of training.research.prior, or set "
            "--realism.vsd.weight 0."
        )
    negative = None
    if vsd.guidance != 1:
        if not prior.is_dir():
            raise ValueError(
                f"Guidance of {vsd.guidance:g} needs a negative prompt, and {prior} has no text encoder: give a Stable "
                "Diffusion folder as --prior, or --realism.vsd.guidance 1."
            )
        negative = encode_prompts(prior, [NEGATIVE_PROMPT])
    base = open_pipeline(prior, "osediff")
    return open_score_networks(base, recipe.regulariser_lora, recipe.adapt, negative)


def total(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The terms with their sum as `loss`."""
    return {**terms, "loss": torch.stack(list(terms.values())).sum()}
