"""The autoencoder of ctsr-mini, the ceiling of everything behind it (SD has its own).

    python -m training.stages.autoencoder mini --data.photos PHOTOS --run.out RUNS/autoencoder

    L = |y - x| + gradient_weight |grad y - grad x| + latent_weight E(x)^2        y = D(E(x) + latent_noise eps)

Starts as a cosine transform (`dct_init`). L1 on pixels and on their gradients; a little noise on the latent and a weak
pull to zero keep the latent smooth and of bounded size, so that the networks behind it can move in it. Ends by
measuring the gate on held-back photographs (45 dB, and 50 dB on enlarged ones), and writes a pipeline whose UNet is
new: it gives back what the autoencoder makes of the enlarged picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from ctsr import CTSRPipeline, TimeAwareAutoencoderMini, TimeConditionedUNetMini
from training.data.datasets import Data, batches_of_one, mini_data, open_source
from training.engine.draws import Draws
from training.engine.loop import Report
from training.engine.processes import means
from training.engine.run import Run
from training.engine.sources import Sample
from training.engine.turn import Turn
from training.model.adapt import autoencoder_groups
from training.model.dct_init import dct_init_
from training.model.one_step import TIMESTEP, enlarge, scale_of
from training.stages.stage import SHOWN, Stage, main, save


@dataclass(frozen=True)
class Recipe:
    """Defaults and their reasons.

    Attributes:
        latent_channels: 112 numbers for 8x8x3: sharp photographs need them for 45 dB (README).
        soft_share: share of samples that are enlarged low-resolution twins: that is what the encoder will see.
        gradient_weight: of the L1 distance between pixel gradients.
        latent_noise: of latents of about unit size.
        latent_weight: of the mean squared latent.
    """

    data: Data
    run: Run
    latent_channels: int = 112
    peak_rate: float = 2e-4  # at 5e-4 and more the loss rises again after the warm-up
    soft_share: float = 0.25
    gradient_weight: float = 1.0
    latent_noise: float = 0.003
    latent_weight: float = 1e-5


MINI = Recipe(data=mini_data(), run=Run(out=tyro.MISSING, steps=800))
RECIPES = {"mini": ("ctsr-mini on two CPU cores", MINI)}


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels, horizontal and vertical."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def gradient_l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the pixel gradients."""
    return torch.stack([F.l1_loss(a, b) for a, b in zip(gradients(x), gradients(y), strict=True)]).sum()


class Generator(nn.Module):
    """Reconstruction through a slightly noisy latent, plus the pull on the latent's size."""

    def __init__(self, vae: TimeAwareAutoencoderMini, recipe: Recipe):
        super().__init__()
        self.vae, self.recipe = vae, recipe

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        """`loss` and its terms."""
        recipe, draws = self.recipe, Draws(batch["index"], self.recipe.run.seed)
        soft = (draws.uniform("soft") < recipe.soft_share).to(batch["sharp"].device)
        x = torch.where(soft[:, None, None, None], enlarge(batch["lr"], scale_of(batch)), batch["sharp"])
        x = x.contiguous(memory_format=torch.channels_last)
        z = self.vae.encode(x).latents
        y = self.vae.decode(z + recipe.latent_noise * draws.normal("latent", z).to(z)).sample.float()
        pixels, edges = F.l1_loss(y, x), recipe.gradient_weight * gradient_l1(y, x)
        size = recipe.latent_weight * z.float().square().mean()
        return {"loss": pixels + edges + size, "pixels": pixels, "edges": edges}


def psnr(x: Tensor, y: Tensor) -> float:
    """PSNR in dB of [-1, 1] pictures."""
    return float(10 * torch.log10(4 / F.mse_loss(x, y).clamp_min(1e-12)))


def gate(vae: TimeAwareAutoencoderMini, pairs: Sequence[Sample]) -> Report:
    """PSNR on held-back photographs and on their enlarged twins, and the latent's standard deviation."""
    rows: dict[str, list[float]] = {"AE(HR)": [], "AE(bicubic)": [], "std": []}
    pictures: list[Tensor] = []
    for sample in batches_of_one(pairs, vae):
        for name, x in (("AE(HR)", sample["sharp"]), ("AE(bicubic)", enlarge(sample["lr"], scale_of(sample)))):
            z = vae.encode(x.contiguous(memory_format=torch.channels_last)).latents
            y = vae.decode(z).sample.float()
            rows[name].append(psnr(y.clamp(-1, 1), x.clamp(-1, 1)))
            if name == "AE(HR)":
                rows["std"].append(float(z.float().std()))
                pictures.append(y)
    return Report(means(rows), {"AE(HR)": torch.cat(pictures[:SHOWN])} if pictures else {})


def pipeline_of(vae: TimeAwareAutoencoderMini) -> CTSRPipeline:
    """With a new UNet, whose output is zero."""
    channels = vae.config["latent_channels"]
    unet = TimeConditionedUNetMini(in_channels=channels, out_channels=3 * channels)
    return CTSRPipeline(vae, unet, parameterization="residual", encoder_timesteps=[TIMESTEP])


def build(recipe: Recipe) -> Stage:
    """The stage of a recipe."""
    vae = TimeAwareAutoencoderMini(latent_channels=recipe.latent_channels).to(memory_format=torch.channels_last)
    dct_init_(vae)
    parameters = [(name, p) for name, p in vae.named_parameters() if "time_" not in name]
    for name, parameter in vae.named_parameters():
        parameter.requires_grad_("time_" not in name)

    @torch.no_grad()
    def write(pairs: Sequence[Sample]) -> None:
        vae.register_to_config(scaling_factor=round(1 / gate(vae, pairs).figures["std"], 4))
        save(pipeline_of(vae.requires_grad_(True)), recipe.run.out)

    return Stage(
        turns=[Turn("autoencoder", Generator(vae, recipe), recipe.peak_rate, autoencoder_groups(parameters, 1.0))],
        source=partial(open_source, recipe.data),
        validate=partial(gate, vae),
        write=write,
    )


if __name__ == "__main__":
    main(RECIPES, build)
