"""TADSR's laws, and its two recipes for two steps on tiny models."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ctsr import CTSRPipeline
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.draws import Draws
from training.engine.run import Run
from training.losses.realism import RealismTerms
from training.losses.reconstruction import Reconstruction, gaussian_blur
from training.losses.score_networks import open_score_networks
from training.losses.vsd import half_timesteps
from training.model.lora import unet_targets, vae_targets
from training.model.one_step import OneStep
from training.research import tadsr
from training.stages.stage import train

TIMESTEPS = (100, 900)
Moved = Callable[[CTSRPipeline, CTSRPipeline, str], set[str]]
Train = Callable[[tadsr.Recipe], CTSRPipeline]


@pytest.fixture
def data(photos: Path) -> Data:
    return Data(photos, pairs=Pairs(crop=64))


@pytest.fixture
def mini(tiny_mini_file: Path, data: Data, make_run: Callable[..., Run], tmp_path: Path) -> tadsr.Recipe:
    return replace(
        tadsr.MINI,
        data=data,
        run=make_run(tmp_path / "tadsr", warm_up=0),
        start=str(tiny_mini_file),
        realism=replace(tadsr.MINI.realism, adversarial=replace(tadsr.MINI.realism.adversarial, delay=0)),
        timesteps=TIMESTEPS,
    )


@pytest.fixture
def sd_start(make_sd: Callable[..., CTSRPipeline], tmp_path: Path) -> Path:
    """An encoder whose time layers are new: their projections are zero."""
    pytest.importorskip("peft")
    pipeline = make_sd("osediff")
    for name, parameter in pipeline.vae.named_parameters():
        if "time_emb_proj" in name:
            nn.init.zeros_(parameter)
    pipeline.save_single_file(tmp_path / "sd.safetensors", torch.float32)
    return tmp_path / "sd.safetensors"


@pytest.fixture
def sd21(sd_start: Path, sd_folder: Path, data: Data, make_run: Callable[..., Run], tmp_path: Path) -> tadsr.Recipe:
    return replace(
        tadsr.SD21,
        data=replace(data, pairs=replace(data.pairs, bicubic_share=0.01)),
        run=make_run(tmp_path / "tadsr", warm_up=0, accumulation=2),
        start=str(sd_start),
        prior=sd_folder,  # has the text encoder that guidance needs
        peak_rate=1e-2,  # 1e-4 would be too little to see in two steps
        reconstruction=Reconstruction(l2=1.0, perceptual=0.0, features="none"),
        timesteps=TIMESTEPS,
    )


def upscale(pipeline: CTSRPipeline, t: float) -> np.ndarray:
    return np.asarray(pipeline(Image.new("RGB", (20, 12), "teal"), t=t).images[0])


def latents(pipeline: CTSRPipeline, timestep: int) -> Tensor:
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return OneStep(pipeline).encode(x, timestep)


@pytest.fixture
def train_twice(moved: Moved) -> Callable[[tadsr.Recipe], CTSRPipeline]:
    """What a recipe leaves; the second run has only to read the checkpoint, and leaves the same."""

    def run(recipe: tadsr.Recipe) -> CTSRPipeline:
        pipelines: list[CTSRPipeline] = []
        for _ in range(2):
            train(tadsr.build, recipe)
            pipelines.append(CTSRPipeline.from_single_file(recipe.run.out / "model.safetensors", torch.float32))
        assert moved(*pipelines, "vae") == moved(*pipelines, "unet") == set()
        assert pipelines[0].family == pipelines[1].family
        return pipelines[1]

    return run


def test_the_generators_timesteps_are_fifty_integers_each_as_likely() -> None:
    assert tadsr.GENERATOR_TIMESTEPS[[0, 1, 2, -2, -1]].tolist() == [1, 21, 41, 978, 999]
    drawn = tadsr.draw_timesteps(Draws(torch.arange(2000)))
    values, counts = drawn.unique(return_counts=True)
    assert torch.equal(values, tadsr.GENERATOR_TIMESTEPS)
    assert counts.min() > 15
    assert torch.equal(tadsr.draw_timesteps(Draws(torch.tensor([7]))), drawn[7:8])


def test_the_distillations_timestep_is_half_the_generators_rounded_down() -> None:
    timestep = torch.tensor([1, 21, 500, 999])
    assert half_timesteps(timestep, Draws(torch.arange(4))).tolist() == [0, 10, 250, 499]


def test_guidance_rises_with_the_timestep_and_is_one_without_prompts() -> None:
    law = tadsr.guidance_law(7.5)
    assert law is not None
    assert law(torch.tensor([0, 100, 499])).tolist() == pytest.approx([7.5, 8.0, 9.995])
    other = tadsr.guidance_law(3.0)
    assert other is not None
    assert other(torch.tensor([100])).tolist() == pytest.approx([3.5])
    assert tadsr.guidance_law(1.0) is None


def test_the_blur_grows_with_the_timestep() -> None:
    assert tadsr.blur_of(1) == (5, pytest.approx(1.005))
    assert tadsr.blur_of(199) == (5, pytest.approx(1.995))
    assert tadsr.blur_of(200) == (9, 2.0)
    assert tadsr.blur_of(999) == (21, pytest.approx(5.995))


def test_each_picture_of_a_batch_gets_its_own_blur_in_fp32() -> None:
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([1, 199, 200, 999])
    with torch.autocast("cpu", torch.bfloat16):
        together = tadsr.blur_by_timestep(x, timestep)
    alone = [gaussian_blur(x[i : i + 1], *tadsr.blur_of(int(timestep[i]))) for i in range(4)]
    assert together.dtype == torch.float32
    assert torch.equal(together, torch.cat(alone))
    assert len({round(float(picture.var()), 6) for picture in together}) == 4


def test_distances_are_blurred_but_for_the_perceptual_one(mini: tadsr.Recipe, make_mini: Callable[..., CTSRPipeline]):
    """A checkerboard is invisible under the blur, and the perceptual term sees it."""
    weights = Reconstruction(l1=1.0, l2=1.0, low=1.0, perceptual=1.0, features="encoder")
    recipe = replace(mini, reconstruction=weights)
    generator = tadsr.Generator(OneStep(make_mini()), recipe, RealismTerms(recipe.realism, 0))
    flat = torch.zeros(1, 3, 32, 32)
    board = flat + 0.5 * (1 - 2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2))
    terms = generator.distances(board, flat, torch.tensor([999]))
    assert max(terms[name] for name in ("l1", "l2", "low")) < 1e-3
    assert terms["perceptual"] > 1e-3


def test_the_adversarial_gradient_grows_with_the_timestep_where_asked(mini: tadsr.Recipe) -> None:
    """The same picture twice in a batch, at two timesteps."""
    recipe = replace(mini, reconstruction=Reconstruction(l1=1e-9, l2=0.0, perceptual=0.0, features="none"))
    indices = [next(i for i in range(500) if tadsr.draw_timesteps(Draws(torch.tensor([i]))) == tau) for tau in (1, 999)]
    torch.manual_seed(0)
    lr = torch.rand(1, 3, 16, 16).expand(2, -1, -1, -1)
    batch = {"index": torch.tensor(indices), "lr": lr, "sharp": torch.rand(2, 3, 64, 64), "step": torch.tensor(5)}

    def gradients(by_timestep: bool) -> list[float]:
        torch.manual_seed(0)
        terms = RealismTerms(recipe.realism, 0)
        model = OneStep(tadsr.open_start(recipe))
        decoded: list[Tensor] = []

        def decode(z: Tensor) -> Tensor:
            x = OneStep.decode(model, z)
            x.retain_grad()
            decoded.append(x)
            return x

        model.decode = decode
        generator = tadsr.Generator(model, replace(recipe, adversarial_by_timestep=by_timestep), terms)
        out = generator(batch)
        assert out["timestep"].tolist() == [1, 999]
        decoded[0].grad = None  # what the term's own look at the discriminator left
        out["loss"].backward()
        return decoded[0].grad.square().sum(dim=(1, 2, 3)).sqrt().tolist()

    plain, weighed = gradients(False), gradients(True)
    assert weighed == pytest.approx([plain[0] / 999, plain[1]], rel=1e-3)


def test_prior_and_regulariser_look_at_half_the_generators_timestep(
    sd21: tadsr.Recipe, make_sd: Callable[..., CTSRPipeline]
) -> None:
    seen: list[tuple[str, Tensor, bool]] = []
    scores = open_score_networks(make_sd("osediff"), "all", negative_prompt=torch.zeros(1, 4, 16))

    def recording(name: str, inner: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(z: Tensor, timestep: Tensor, prompt: Tensor | None = None) -> Tensor:
            seen.append((name, timestep, prompt is not None))
            return inner(z, timestep, prompt)

        return call

    scores = replace(
        scores, prior=recording("prior", scores.prior), regulariser=recording("regulariser", scores.regulariser)
    )
    terms = RealismTerms(sd21.realism, 0, scores, half_timesteps, tadsr.guidance_law(7.5))
    generator = tadsr.Generator(OneStep(tadsr.open_start(sd21)), sd21, terms)
    batch = {"index": torch.arange(2), "lr": torch.zeros(2, 3, 16, 16), "sharp": torch.zeros(2, 3, 64, 64)}
    out = generator(batch)
    assert math.isfinite(out["vsd"].detach())
    terms.turns[0].module(batch | {name: tensor.detach() for name, tensor in out.items()})
    calls = [(name, negative) for name, _, negative in seen]
    assert calls == [("regulariser", False), ("prior", False), ("prior", True), ("regulariser", False)]
    half = out["timestep"] // 2
    assert half.unique().numel() == 2
    assert all(torch.equal(timestep, half) for _, timestep, _ in seen)


def test_the_mini_learns_all_of_itself_and_its_file_upscales(
    mini: tadsr.Recipe, train_twice: Train, moved: Moved
) -> None:
    trained = train_twice(mini)
    assert (trained.family.name, trained.family.parameterization) == ("tadsr", "residual")
    assert trained.family.encoder_timesteps in ((900, 100), (500, 200))  # measured, or the family's
    assert (mini.run.out / "model.calibration.json").is_file()
    before = tadsr.open_start(mini)
    for part in ("vae", "unet"):
        assert moved(before, trained, part) == set(getattr(before, part).state_dict()), part
    assert upscale(trained, 0.0).shape == (48, 80, 3)
    assert not np.array_equal(upscale(trained, 0.0), upscale(trained, 1.0))


def test_sd_learns_lora_conv_in_and_time_layers_and_its_file_upscales(
    sd21: tadsr.Recipe, train_twice: Train, moved: Moved
) -> None:
    trained = train_twice(sd21)
    assert (trained.family.name, trained.family.parameterization) == ("tadsr", "scaled_residual")
    start = tadsr.open_start(sd21)
    targets = {name for group in unet_targets(start.unet).values() for name in group}
    vae_modules = {name for group in vae_targets(start.vae).values() for name in group}
    time_layers = {name for name in start.vae.state_dict() if "time_" in name}
    for part in (start.unet, start.vae):
        part.to(torch.bfloat16).float()  # as the frozen base
    assert moved(start, trained, "unet") == {f"{name}.weight" for name in targets} | {"conv_in.bias"}
    assert moved(start, trained, "vae") == {f"{name}.weight" for name in vae_modules} | time_layers
    assert not torch.equal(latents(trained, 100), latents(trained, 900))
    assert torch.equal(latents(start, 100), latents(start, 900))  # as it began
    assert upscale(trained, 0.5).shape == (48, 80, 3)


def test_the_recipe_is_the_papers() -> None:
    recipe = tadsr.SD21
    assert (recipe.reconstruction.l2, recipe.reconstruction.perceptual, recipe.realism.vsd.weight) == (1, 2, 1)
    assert recipe.data.pairs.bicubic_share == 0.01
    assert (recipe.realism.vsd.guidance, recipe.realism.adversarial.weight) == (7.5, 0)
