"""PiSA-SR's two LoRAs: the pixel one, the semantic one above it, and both ends of the dial in the file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline
from ctsr.convert.prompts import encode_prompts
from ctsr.families import coefficients, predict_x0
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.draws import Draws
from training.engine.run import Run
from training.losses.vsd import add_noise
from training.model.lora import unet_targets
from training.model.one_step import OneStep, open_pipeline
from training.model.sd21 import NEGATIVE_PROMPT
from training.research import pisa
from training.stages.stage import train

pytest.importorskip("peft")

PICTURE = Image.radial_gradient("L").resize((24, 16)).convert("RGB")
QUICK = replace(pisa.L2, l2=1.0)


@pytest.fixture
def pixel(photos: Path, sd_folder: Path, make_run: Callable[..., Run], tmp_path: Path) -> pisa.PixelRecipe:
    _, recipe = pisa.RECIPES["sd21-pixel"]
    run = make_run(tmp_path / "pixel", warm_up=0)
    return replace(recipe, data=Data(photos, pairs=Pairs(crop=64)), run=run, start=str(sd_folder), peak_rate=1e-2)


@pytest.fixture
def semantic(pixel: pisa.PixelRecipe, sd_folder: Path, tmp_path: Path) -> pisa.SemanticRecipe:
    _, recipe = pisa.RECIPES["sd21-semantic"]
    assert isinstance(recipe, pisa.SemanticRecipe)
    run = replace(pixel.run, out=tmp_path / "semantic")
    return replace(
        recipe,
        data=pixel.data,
        run=run,
        start=str(pixel.run.out / "model.safetensors"),
        prior=sd_folder,
        prompt="cat",
        peak_rate=1e-2,
        reconstruction=QUICK,
    )


def picture_of(path: Path, t: float) -> torch.Tensor:
    return CTSRPipeline.from_single_file(path / "model.safetensors")(PICTURE, t=t, output_type="latent").images


def test_the_pixel_lora_is_folded_in_and_the_semantic_one_is_the_way_to_t_0(
    pixel: pisa.PixelRecipe, semantic: pisa.SemanticRecipe, sd_folder: Path
) -> None:
    train(pisa.build, pixel)
    before, after = open_pipeline(sd_folder, "osediff").unet, open_pipeline(semantic.start).unet
    names = [name for group in unet_targets(before).values() for name in group]
    old, new = ({name: x.clone() for name, x in unet.state_dict().items()} for unet in (before, after))
    assert all(not torch.equal(old[f"{name}.weight"], new[f"{name}.weight"]) for name in names)
    assert torch.equal(old["conv_in.bias"].bfloat16(), new["conv_in.bias"].bfloat16())  # as the frozen base
    assert torch.equal(picture_of(pixel.run.out, 0.0), picture_of(pixel.run.out, 1.0))
    train(pisa.build, semantic)
    finished = CTSRPipeline.from_single_file(semantic.run.out / "model.safetensors")
    assert finished.family.has_dial
    assert all(torch.equal(x, new[name]) for name, x in finished.unet.state_dict().items())
    assert all(pair.b.abs().max() > 0 for pair in finished.unet_variant.pairs().values())
    torch.testing.assert_close(picture_of(semantic.run.out, 1.0), picture_of(pixel.run.out, 1.0))
    assert (picture_of(semantic.run.out, 0.0) - picture_of(pixel.run.out, 1.0)).abs().max() > 1e-3


def test_csd_goes_from_the_negative_prompts_score_to_the_guided_one(
    semantic: pisa.SemanticRecipe, sd_folder: Path
) -> None:
    recipe = replace(semantic, adapt=replace(semantic.adapt, base_dtype="fp32"))
    csd, draws = pisa.open_csd(recipe), Draws(torch.tensor([3, 4]))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = pisa.low_timesteps(None, draws)
    noisy = add_noise(z, draws.normal("vsd", z), timestep)
    model = OneStep(open_pipeline(sd_folder, "osediff"))
    with torch.no_grad():
        cat, negative = (
            model.predict(noisy, timestep, encode_prompts(sd_folder, [text])) for text in ("cat", NEGATIVE_PROMPT)
        )
        guided = negative + 7.5 * (cat - negative)
        fake, real = (predict_x0(noisy, e, *coefficients("epsilon", timestep)) for e in (negative, guided))
        g = (fake - real) / (z - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(csd.direction(z, draws), g, rtol=1e-4, atol=1e-5)
    many = pisa.low_timesteps(None, Draws(torch.arange(400)))
    assert (int(many.min()) >= 20, int(many.max()) <= 499) == (True, True)
    assert many.float().mean() == pytest.approx(260, abs=25)
    assert pisa.open_csd(replace(recipe, csd=pisa.CSD(weight=0.0))) is None


def test_other_starts_are_refused(pixel: pisa.PixelRecipe, semantic: pisa.SemanticRecipe, tiny_mini_file: Path) -> None:
    with pytest.raises(ValueError, match=r"no Stable Diffusion 2\.1-base folder: give one as --start"):
        pisa.build(replace(pixel, start=str(tiny_mini_file)))
    with pytest.raises(ValueError, match="is of family 'ctsr': give the file of the pixel stage"):
        pisa.build(replace(semantic, start=str(tiny_mini_file)))
    with pytest.raises(ValueError, match="give one as --prior"):
        pisa.open_csd(replace(semantic, prior=tiny_mini_file))


def test_the_recipes_are_the_papers() -> None:
    (_, pixel), (_, semantic) = pisa.RECIPES.values()
    assert (pixel.reconstruction.l2, pixel.reconstruction.perceptual, pixel.run.steps) == (1, 0, 4000)
    assert (semantic.reconstruction.l2, semantic.reconstruction.perceptual) == (1, 2)
    assert isinstance(semantic, pisa.SemanticRecipe)
    assert semantic.csd == pisa.CSD(1.0, 7.5)
    assert (pixel.adapt.encoder, pixel.adapt.rank) == ("frozen", 4)
