"""Two LoRAs of one UNet, one for pixels and one for semantics (PiSA-SR, arXiv 2412.03017).

    python -m training.research.pisa sd21-pixel --data.photos PHOTOS --start SD21_BASE --run.out PIXEL
    python -m training.research.pisa sd21-semantic --data.photos PHOTOS --start PIXEL/model.safetensors \\
        --prior SD21_BASE --prompt "a sharp photograph" --run.out RUNS/pisa

z = z_L - U(z_L, 1), the autoencoder frozen. The pixel LoRA learns by L2 alone and is folded into the UNet; the semantic
one learns above it by L2, LPIPS and classifier score distillation (CSD, arXiv 2310.19415),

    g = (x_- - x_cfg) / mean|z - x_cfg|        dL/dz = 2 g / N

x_cfg the frozen base's clean latent behind z_tau under guidance by the prompt against the negative one, x_- that of the
negative prompt alone, tau ~ U{20..499}: no network follows the generator. The file has both: t = 1 is the pixel LoRA
alone, t = 0 both. The paper's prompt is each picture's tags; here it is one for all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from ctsr import CTSRPipeline, PromptEmbeddings
from ctsr.convert.prompts import encode_prompts
from ctsr.families import Endpoints, coefficients, predict_x0
from ctsr.models.lora import Pair, lora_layers
from ctsr.models.lora_variant import LoraVariant
from training.data.datasets import Data, open_source, sd21_data
from training.engine.draws import Draws
from training.engine.run import Run, own_device
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.losses.perceptual import perceptual_loss
from training.losses.realism import total
from training.losses.reconstruction import Reconstruction, reconstruction_losses
from training.losses.score_networks import adapters_off, denoiser
from training.losses.vsd import LOWEST, VSDTerm, constant_guidance
from training.model.adapt import AS_OSEDIFF, Adapt, Group, adapt, to_base_dtype
from training.model.lora import lora_parameters, unet_targets
from training.model.one_step import OneStep, enlarge, is_base, open_pipeline
from training.model.sd21 import NEGATIVE_PROMPT
from training.stages.stage import Stage, finish_and_save, main, save, validate

TIMESTEP = 1
HIGHEST = 499
ADAPT = Adapt(unet="lora", encoder="frozen", decoder=False, time_layers=False, checkpointing=True, base_dtype="bf16")


@dataclass(frozen=True)
class CSD:
    """Classifier score distillation; the paper's guidance is 7.5."""

    weight: float = 1.0
    guidance: float = 7.5


@dataclass(frozen=True)
class PixelRecipe:
    """Defaults, the paper's.

    Attributes:
        start: an SD 2.1 base folder.
    """

    data: Data
    run: Run
    start: str
    adapt: Adapt = ADAPT
    peak_rate: float = 5e-5
    reconstruction: Reconstruction = field(default_factory=Reconstruction)


@dataclass(frozen=True)
class SemanticRecipe(PixelRecipe):
    """Defaults, the paper's; see `PixelRecipe` for the others.

    Attributes:
        start: file of the pixel stage.
        prior: the SD 2.1 base folder.
        prompt: what CSD guides towards.
    """

    prior: Path = field(default=tyro.MISSING)
    prompt: str = ""
    csd: CSD = field(default_factory=CSD)


RUN = Run(out=tyro.MISSING, steps=4000, batch=1, accumulation=16, ema=0.999, schedule="constant")
L2 = Reconstruction(l2=1.0, perceptual=0.0, features="none")
RECIPES: dict[str, tuple[str, PixelRecipe | SemanticRecipe]] = {
    "sd21-pixel": (
        "The pixel LoRA, for Stable Diffusion 2.1-base on one 24 GB card",
        PixelRecipe(sd21_data(), RUN, tyro.MISSING, reconstruction=L2),
    ),
    "sd21-semantic": (
        "The semantic LoRA above it",
        SemanticRecipe(
            sd21_data(), RUN, tyro.MISSING, reconstruction=Reconstruction(l2=1.0, perceptual=2.0, features="lpips")
        ),
    ),
}


class PisaModel(OneStep):
    """The UNet and its adapters.

    Args:
        pipeline: of family pisa.
        above: whether the adapters are the semantic ones; without them the UNet is the pixel variant then.
    """

    def __init__(self, pipeline: CTSRPipeline, above: bool):
        super().__init__(pipeline)
        self.above = above

    def latent(self, lr: Tensor) -> Tensor:
        """z of [B, 3, h, w] in [-1, 1], fp32 [B, C, h, w], with the adapters as they are."""
        with torch.no_grad():
            z = self.encode(enlarge(lr, self.scale))
        return predict_x0(z, self.predict(z, TIMESTEP), *coefficients("residual", TIMESTEP))

    def forward(self, lr: Tensor, timestep: Tensor | None = None) -> Endpoints:
        """Both variants as endpoints; one where there is no other yet."""
        z0 = self.latent(lr)
        if not self.above:
            return Endpoints(z0)
        with adapters_off(self.unet):
            return Endpoints(z0, self.latent(lr) - z0)


class Generator(nn.Module):
    """The loss of the adapters that learn."""

    def __init__(self, model: PisaModel, recipe: PixelRecipe, csd: VSDTerm | None):
        super().__init__()
        self.model, self.recipe, self.csd = model, recipe, csd
        weights = recipe.reconstruction
        self.perceptual = perceptual_loss(weights.features, model, weights.weights)

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss` and its terms."""
        z = self.model.latent(batch["lr"])
        x, weights = self.model.decode(z), self.recipe.reconstruction
        terms = reconstruction_losses(x, batch["sharp"], weights, self.perceptual)
        if self.csd is not None and isinstance(self.recipe, SemanticRecipe):
            draws = Draws(batch["index"], self.recipe.run.seed)
            terms["csd"] = self.recipe.csd.weight * self.csd.loss(z, draws)
        return total(terms)


def variant_of(pairs: Mapping[str, Pair], what: Adapt) -> LoraVariant:
    """The component that makes a pixel UNet the full one."""
    return LoraVariant.from_pairs("full", pairs, what.alpha / what.rank)


def open_base(recipe: PixelRecipe) -> CTSRPipeline:
    """An SD 2.1 base as family pisa, both variants alike; raises ValueError for another start."""
    if not is_base(recipe.start):
        raise ValueError(f"{recipe.start} is no Stable Diffusion 2.1-base folder: give one as --start.")
    base = open_pipeline(recipe.start, "osediff", recipe.data.pairs)
    names = [name for own in unet_targets(base.unet).values() for name in own]
    sizes = {name: base.unet.get_parameter(f"{name}.weight").shape for name in names}
    rank = recipe.adapt.rank
    pairs = {
        name: Pair(torch.zeros(rank, *size[1:]), torch.zeros(size[0], rank, *(1 for _ in size[2:])))
        for name, size in sizes.items()
    }
    variant = variant_of(pairs, recipe.adapt)
    parts = (base.vae, base.unet, base.prompt_embeddings)
    own: dict[str, Any] = {key: base.config[key] for key in ("task", "default_scale")}
    return CTSRPipeline(*parts, family="pisa", unet_variant=variant, **own)


def open_pixel(recipe: SemanticRecipe) -> CTSRPipeline:
    """The file of the pixel stage; raises ValueError for another family."""
    pipeline = open_pipeline(recipe.start, pairs=recipe.data.pairs)
    if pipeline.family.name != "pisa":
        raise ValueError(f"{recipe.start} is of family {pipeline.family.name!r}: give the file of the pixel stage.")
    return pipeline


def low_timesteps(generator_timestep: Tensor | None, draws: Draws) -> Tensor:
    """U{20..499}, int64 [B]."""
    return draws.integers("csd timestep", LOWEST, HIGHEST)


def open_csd(recipe: SemanticRecipe) -> VSDTerm | None:
    """CSD by the frozen base: the score of the negative prompt takes the place of a regulariser's."""
    if not recipe.csd.weight:
        return None
    if not is_base(recipe.prior):
        raise ValueError(f"{recipe.prior} is no Stable Diffusion 2.1-base folder: give one as --prior.")
    embeds = encode_prompts(recipe.prior, [recipe.prompt, NEGATIVE_PROMPT]).to(own_device())
    base = open_pipeline(recipe.prior, "osediff")
    base.prompt_embeddings = PromptEmbeddings.from_embeds(embeds[:1].cpu())
    model = OneStep(base).requires_grad_(False).to(own_device())
    to_base_dtype(model.unet, recipe.adapt)
    prior, negative = denoiser(model), embeds[1:]

    def unconditional(z: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
        return prior(z, timestep, negative)

    return VSDTerm(prior, unconditional, low_timesteps, constant_guidance(recipe.csd.guidance), negative)


@torch.no_grad()
def pairs_of(unet: nn.Module) -> dict[str, Pair]:
    """The adapters' weights by module, one each."""
    pairs: dict[str, Pair] = {}
    for name, layer in lora_layers(unet).items():
        (adapter,) = layer.lora_A
        pairs[name] = Pair(*(side[adapter].weight.detach().float().cpu() for side in (layer.lora_A, layer.lora_B)))
    return pairs


def adapters_alone(model: PisaModel, what: Adapt) -> list[Group]:
    """As `adapt`, without the UNet's first layer, which OSEDiff trains and PiSA-SR does not."""
    adapt(model, what)
    adapters = list(lora_parameters(model.unet))
    model.requires_grad_(False)
    for parameter in adapters:
        parameter.requires_grad_(True)
    return [{"params": adapters, **AS_OSEDIFF}]


def build(recipe: PixelRecipe | SemanticRecipe) -> Stage:
    """The stage of a recipe."""
    above = isinstance(recipe, SemanticRecipe)
    pipeline = open_pixel(recipe) if isinstance(recipe, SemanticRecipe) else open_base(recipe)
    model = PisaModel(pipeline, above)
    csd = open_csd(recipe) if isinstance(recipe, SemanticRecipe) else None
    groups = adapters_alone(model, recipe.adapt)

    def write_semantic() -> None:
        finished = open_pipeline(recipe.start, pairs=recipe.data.pairs)
        finished.unet_variant = variant_of(pairs_of(model.unet), recipe.adapt)
        save(finished, recipe.run.out)

    def write_pixel() -> None:
        finish_and_save(pipeline, model, recipe.adapt, recipe.run.out)

    return Stage(
        turns=[Turn("generator", Generator(model, recipe, csd), recipe.peak_rate, groups)],
        source=partial(open_source, recipe.data),
        validate=partial(validate, model, dial=(0.0, 1.0)),
        write=lambda _: write_semantic() if above else write_pixel(),
    )


if __name__ == "__main__":
    main(RECIPES, build)
