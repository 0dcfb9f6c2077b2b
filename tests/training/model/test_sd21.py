"""A Stable Diffusion folder as the start of training: sizes, families, and folders that are none."""

from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctsr import CheckpointError, CTSRPipeline, TimeAwareAutoencoderKL
from ctsr.convert.prompts import encode_prompts
from training.model.sd21 import NEGATIVE_PROMPT, SD21_UNET, SD21_VAE, load_base


@pytest.fixture
def folder(sd_folder: Path) -> Path:
    return sd_folder


def result(pipeline: CTSRPipeline, t: float) -> Tensor:
    picture = torch.rand(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    return pipeline(picture, t=t, output_type="pt").images


def test_sizes_of_sd21_base():
    with torch.device("meta"):
        unet, vae, aware = (
            UNet2DConditionModel(**SD21_UNET),
            AutoencoderKL(**SD21_VAE),
            TimeAwareAutoencoderKL(**SD21_VAE),
        )
    assert [sum(p.numel() for p in m.parameters()) for m in (unet, vae)] == [865_910_724, 83_653_863]
    assert sum(p.numel() for p in aware.parameters()) == 83_653_863 + 2_072_576


def test_every_family_starts_as_plain_stable_diffusion(folder):
    """Time layers and new output groups are zero: one picture, whatever t and whatever the family of epsilon."""
    plain = load_base(folder, "osediff", time_aware=False)
    assert type(plain.vae) is AutoencoderKL
    expected = result(plain, 0.5)
    for family in ("ctsr", "osediff"):
        pipeline = load_base(folder, family)
        assert type(pipeline.vae) is TimeAwareAutoencoderKL
        for t in (0.0, 0.6, 1.0):
            torch.testing.assert_close(result(pipeline, t), expected, rtol=0, atol=1e-4)
    residual = load_base(folder, "tadsr")
    assert residual.unet.config["out_channels"] == 4
    assert not torch.allclose(result(residual, 0.0), result(residual, 1.0), atol=1e-3)


def test_the_prompt_is_baked(folder):
    for prompt in ("", "a photograph"):
        embeds = load_base(folder, "osediff", prompt).prompt_embeddings.embeds
        torch.testing.assert_close(embeds, encode_prompts(folder, [prompt]), rtol=0, atol=0)
    assert len(set(NEGATIVE_PROMPT.split(", "))) == 22


def test_a_folder_of_halves_is_loaded_as_fp32(folder, make_sd, tmp_path):
    for part in ("tokenizer", "text_encoder"):
        (tmp_path / part).symlink_to(folder / part)
    for name, cls in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        cls.from_pretrained(folder / name, low_cpu_mem_usage=False).half().save_pretrained(tmp_path / name)
    pipeline = load_base(tmp_path, "ctsr")
    dtypes = {
        p.dtype for m in (pipeline.unet, pipeline.vae, pipeline.prompt_embeddings) for p in m.state_dict().values()
    }
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("part", ["unet", "vae", "tokenizer", "text_encoder"])
def test_a_missing_part_is_named(folder, tmp_path, part):
    for other in folder.iterdir():
        if other.name != part:
            (tmp_path / other.name).symlink_to(other)
    with pytest.raises(CheckpointError, match=part) as caught:
        load_base(tmp_path, "ctsr")
    assert "\n" not in str(caught.value)


def test_a_damaged_part_is_refused(folder, tmp_path):
    for other in folder.iterdir():
        (tmp_path / other.name).symlink_to(other)
    (tmp_path / "vae").unlink()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").symlink_to(folder / "vae" / "config.json")
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_base(tmp_path, "ctsr")


def replace_vae(folder: Path, target: Path, change) -> Path:
    """A copy of `folder` with the tensors of its autoencoder changed."""
    for other in folder.iterdir():
        if other.name != "vae":
            (target / other.name).symlink_to(other)
    (target / "vae").mkdir()
    (target / "vae" / "config.json").symlink_to(folder / "vae" / "config.json")
    name = "diffusion_pytorch_model.safetensors"
    save_file(change(load_file(folder / "vae" / name)), target / "vae" / name, metadata={"format": "pt"})
    return target


def test_the_old_names_of_the_published_autoencoder(folder, tmp_path):
    """SD 2.1-base was published before diffusers renamed the attention of its autoencoder."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for new, name in old.items():
            tensors = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): t for key, t in tensors.items()}
        return tensors

    renamed = load_base(replace_vae(folder, tmp_path, rename), "osediff")
    assert torch.equal(result(renamed, 0.5), result(load_base(folder, "osediff"), 0.5))


def test_an_incomplete_part_is_refused(folder, tmp_path):
    def drop(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        del tensors["decoder.conv_out.weight"]
        return tensors

    with pytest.raises(CheckpointError, match=r"decoder\.conv_out\.weight is missing"):
        load_base(replace_vae(folder, tmp_path, drop), "ctsr")


def test_the_sibling_that_predicts_v_is_refused(folder, tmp_path):
    for other in folder.iterdir():
        if other.name != "scheduler":
            (tmp_path / other.name).symlink_to(other)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    with pytest.raises(CheckpointError, match="v_prediction"):
        load_base(tmp_path, "ctsr")


def test_families_that_cannot_start_here(folder):
    for family in ("pisa", "oftsr"):
        with pytest.raises(ValueError, match="does not start from the plain UNet"):
            load_base(folder, family)
    with pytest.raises(ValueError, match="leave time_aware on"):
        load_base(folder, "tadsr", time_aware=False)
