"""The networks as training sees them are the pipeline's own, and differentiable."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ctsr import CheckpointError, CTSRPipeline
from ctsr.families import blend, coefficients, get_family
from training.model.lora import add_lora, lora_parameters, unet_targets
from training.model.one_step import OneStep, enlarge, open_pipeline


def picture(height: int = 12, width: int = 20) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_enlarging_is_bicubic_times_four_and_stays_in_place() -> None:
    flat = torch.full((1, 3, 5, 7), 0.25)
    assert enlarge(flat).shape == (1, 3, 20, 28)
    torch.testing.assert_close(enlarge(flat), torch.full((1, 3, 20, 28), 0.25))
    slope = torch.linspace(-1, 1, 16).expand(1, 3, 8, 16)
    centres = enlarge(slope).unfold(3, 4, 4).mean(-1)[..., 3:-3]  # no half-pixel shift
    torch.testing.assert_close(centres[0, 0, 16], slope[0, 0, 4, 3:-3], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["make_mini", "make_sd"])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_a_picture_is_what_the_pipeline_makes_of_it(kind: str, t: float, request: pytest.FixtureRequest) -> None:
    pipeline: CTSRPipeline = request.getfixturevalue(kind)()
    model = OneStep(pipeline)
    lr = picture(16, 24) if kind == "make_sd" else picture()
    with torch.no_grad():
        x = model.decode(blend(model(2 * lr - 1), t))
    for row in range(2):  # the pipeline runs pictures one at a time
        expected = pipeline(lr[row : row + 1], t=t, color_fix="none", output_type="pt").images
        torch.testing.assert_close(((x[row : row + 1] + 1) / 2).clamp(0, 1), expected, rtol=0, atol=1e-4)


def test_the_gradient_reaches_every_network_and_the_picture(make_sd: Callable[..., CTSRPipeline]) -> None:
    model = OneStep(make_sd("osediff"))
    lr = picture(8, 8).requires_grad_(True)
    model.decode(model(2 * lr - 1).z0).square().mean().backward()
    assert lr.grad.abs().max() > 0
    for part in (model.vae.encoder, model.vae.decoder, model.unet):
        assert max(float(p.grad.abs().max()) for p in part.parameters() if p.grad is not None) > 0


def test_the_networks_are_shared_with_the_pipeline(make_mini: Callable[..., CTSRPipeline]) -> None:
    pipeline = make_mini()
    model = OneStep(pipeline)
    assert model.vae is pipeline.vae
    assert model.unet is pipeline.unet
    assert model.prompt is None
    assert model.scaling_factor == pipeline.scaling_factor


def test_the_prompt_is_the_baked_one_or_the_one_given(make_sd: Callable[..., CTSRPipeline]) -> None:
    pipeline = make_sd("osediff")
    model = OneStep(pipeline)
    z, step = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([20, 700])
    baked = pipeline.prompt_embeddings.embeds
    with torch.no_grad():
        assert torch.equal(model.predict(z, step), model.predict(z, step, baked))
        assert not torch.allclose(model.predict(z, step), model.predict(z, step, 2 * baked), atol=1e-3)


def test_x0_is_of_the_first_output_group(make_mini: Callable[..., CTSRPipeline]) -> None:
    model = OneStep(make_mini())
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    a, b = coefficients("residual", 999)
    with torch.no_grad():
        torch.testing.assert_close(model.x0(z, 999), a * z + b * model.predict(z, 999)[:, :4])


def test_what_a_stage_can_start_from(tiny_mini_file: Path, sd_folder: Path, tmp_path: Path) -> None:
    pipeline = open_pipeline(tiny_mini_file)
    assert pipeline.family.parameterization == "residual"
    assert {p.dtype for p in pipeline.unet.parameters()} == {torch.float32}
    pipeline.save_pretrained(tmp_path / "folder")
    assert open_pipeline(tmp_path / "folder").family == pipeline.family
    assert open_pipeline(sd_folder, "osediff").family.name == "osediff"
    assert open_pipeline(sd_folder).unet.config["out_channels"] == 12
    with pytest.raises(CheckpointError, match="does not exist"):
        open_pipeline(tmp_path / "nothing.safetensors")


def test_a_diffusers_folder_of_another_pipeline_is_a_base(sd_folder: Path, tmp_path: Path) -> None:
    for part in sd_folder.iterdir():
        (tmp_path / part.name).symlink_to(part)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
    assert open_pipeline(tmp_path, "osediff").family.name == "osediff"


def test_adapters_that_a_stage_kept_are_merged(make_sd: Callable[..., CTSRPipeline], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    kept = make_sd("osediff")
    add_lora(kept.unet, unet_targets(kept.unet))
    for parameter in lora_parameters(kept.unet):
        parameter.data.fill_(0.1)
    kept.save_single_file(tmp_path / "kept.safetensors", torch.float32)
    opened, z, prompt = open_pipeline(tmp_path / "kept.safetensors"), torch.randn(1, 4, 8, 8), torch.randn(1, 4, 16)
    assert not lora_parameters(opened.unet)
    assert torch.allclose(opened.unet(z, 9, prompt).sample, kept.unet(z, 9, prompt).sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["osediff", "pisa"])
def test_under_autocast_a_unet_whose_error_is_amplified_computes_in_fp32(
    make_sd: Callable[..., CTSRPipeline], family: str
) -> None:
    model, z = OneStep(make_sd("osediff")), torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    model.family = get_family(family)
    with torch.no_grad():
        exact = model.x0(z, 999)
        with torch.autocast("cpu", torch.bfloat16):
            ours = model.x0(z, 999)
            quick = model.predict(z, 999, accurately=False)
    assert quick.dtype == torch.bfloat16
    assert torch.equal(ours, exact) is (family == "osediff")
    assert (ours - exact).square().mean().sqrt() < 0.03
