"""A folder for the hub: everything in it loads, gives the same picture, and is told of in its card."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ctsr import CTSRPipeline, LoraVariant
from ctsr.app.cli import app

pytest.importorskip("diffusers.modular_pipelines", reason="this release of diffusers has no modular pipelines")
hub = pytest.importorskip("huggingface_hub")
folders = pytest.importorskip("ctsr.publish.folder")


def result(pipeline: CTSRPipeline) -> Tensor:
    x = torch.rand(1, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    return pipeline(x, t=0.3, output_type="pt").images


def pisa(osediff: CTSRPipeline) -> CTSRPipeline:
    variant = LoraVariant("full", 2, 1.0, {"conv_in": list(osediff.unet.conv_in.weight.shape)})
    return CTSRPipeline(osediff.vae, osediff.unet, osediff.prompt_embeddings, family="pisa", unet_variant=variant)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_a_folder_that_loads(tiny_mini, tiny_mini_file, tmp_path):
    folder = tmp_path / "hub"
    command = ["hub-folder", "--model", str(tiny_mini_file), "-o", str(folder), "--repo", "someone/tiny-sr"]
    done = CliRunner().invoke(app, [*command, "--license", "apache-2.0"])
    assert done.exit_code == 0, done.output
    own = {"model_index.json", "modular_config.json", "modular_model_index.json", "modular.py", "pipeline.py"}
    own |= {
        f"{part}/{file}" for part in ("vae", "unet") for file in ("config.json", "diffusion_pytorch_model.safetensors")
    }
    assert files(folder) == own | {f"tiny/{file}" for file in own} | {"README.md", "tiny-sr.safetensors"}
    for loaded in (
        CTSRPipeline.from_pretrained(folder),
        CTSRPipeline.from_single_file(folder / "tiny-sr.safetensors"),
    ):
        assert torch.equal(result(loaded), result(tiny_mini))
    card = hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "image-to-image"
    assert card.data.license == "apache-2.0"
    assert "super-resolution" in card.data.tags
    assert 'CTSRPipeline.from_pretrained("someone/tiny-sr")' in card.content
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "is not empty: name a new folder" in " ".join(again.output.split())


@pytest.mark.parametrize("kind", ["sd", "pisa"])
def test_tiny_pipelines_of_every_kind(kind, make_sd, tmp_path):
    pipeline = make_sd() if kind == "sd" else pisa(make_sd("osediff"))
    folders.write_hub_folder(pipeline, tmp_path, "model", "someone/model", "CC-BY-NC 4.0 (the authors')")
    tiny = CTSRPipeline.from_pretrained(tmp_path / "tiny")
    assert tiny.family == pipeline.family
    assert [type(part) for part in tiny.components.values()] == [type(part) for part in pipeline.components.values()]
    assert torch.equal(result(tiny), result(folders.tiny_pipeline(pipeline)))
    assert result(tiny).std() > 0.01
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "CC-BY-NC 4.0 (the authors')")


@pytest.mark.parametrize("build", ["mini", "mini2"])
def test_tiny_minis_are_small(build, tmp_path):
    from ctsr.models.autoencoder_mini import TimeAwareAutoencoderMini
    from ctsr.models.autoencoder_mini2 import TimeAwareAutoencoderMini2
    from ctsr.models.unet_mini import TimeConditionedUNetMini
    from ctsr.models.unet_mini2 import TimeConditionedUNetMini2

    parts = {
        "mini": (TimeAwareAutoencoderMini, TimeConditionedUNetMini),
        "mini2": (TimeAwareAutoencoderMini2, TimeConditionedUNetMini2),
    }[build]
    tiny = folders.tiny_pipeline(CTSRPipeline(*(part() for part in parts), parameterization="residual"))
    assert sum(p.numel() for part in (tiny.vae, tiny.unet) for p in part.parameters()) < 1e6
    assert result(tiny).shape == (1, 3, 36, 52)
