"""The blocks of Modular Diffusers: the same pictures as the pipeline, also from a folder in a fresh process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.images.tensors import as_pil

pytest.importorskip("diffusers.modular_pipelines", reason="this release of diffusers has no modular pipelines")
modular = pytest.importorskip("ctsr.modular")
folders = pytest.importorskip("ctsr.publish.folder")

ROOT = Path(__file__).resolve().parents[2]


def picture(batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 9, 13, generator=torch.Generator().manual_seed(0))


def of(pipeline: CTSRPipeline) -> Any:
    """The modular form of a pipeline, with its networks."""
    made = modular.CTSRBlocks().init_pipeline()
    parts = {name: part for name in modular.own.COMPONENTS if (part := getattr(pipeline, name)) is not None}
    made.update_components(**parts, **{name: pipeline.config[name] for name in modular.SETTINGS})
    return made


@pytest.fixture(params=["tiny_mini", "tiny_sd"])
def pipeline(request: pytest.FixtureRequest) -> CTSRPipeline:
    return request.getfixturevalue(request.param)


def test_the_blocks_give_what_the_pipeline_gives(pipeline):
    made, ramp = of(pipeline), torch.linspace(0, 1, 13).expand(9, 13)
    for options in (
        {"t": 0.3},
        {"t": [0.0, 1.0]},
        {"t_map": ramp},
        {"t": "auto"},
        {"t": 0.3, "height": 20, "color_fix": "adain"},
    ):
        expected = pipeline(picture(2), output_type="pt", **options).images
        assert torch.equal(made(image=picture(2), output_type="pt", output="images", **options), expected)
    as_pictures = made(image=picture(), output="images")
    assert as_pictures == [as_pil(pipeline(picture(), output_type="pt").images)]


def test_a_state_serves_another_t_without_the_networks_before_it(tiny_mini):
    blocks = modular.CTSRBlocks()
    decode = {name: blocks.sub_blocks.pop(name) for name in ("blend", "decode")}
    before, after = blocks.init_pipeline(), type(blocks).from_blocks_dict(decode).init_pipeline()
    settings = {name: tiny_mini.config[name] for name in modular.SETTINGS}
    for part in (before, after):
        part.update_components(vae=tiny_mini.vae, unet=tiny_mini.unet, **settings)
    state = before(image=picture())
    for t in (0.0, 0.7):
        given = {"encoded": state.get("encoded"), "endpoints": state.get("endpoints"), "t": t, "output_type": "pt"}
        assert torch.equal(after(**given, output="images"), tiny_mini(picture(), t=t, output_type="pt").images)


def test_other_settings_and_networks_count_at_the_next_call(tiny_mini, make_mini):
    made, other = of(tiny_mini), make_mini(seed=9)
    made(image=picture())
    made.update_components(color_fix="none")
    plain = made(image=picture(), output_type="pt", output="images")
    assert torch.equal(plain, tiny_mini(picture(), color_fix="none", output_type="pt").images)
    made.update_components(unet=other.unet, vae=other.vae)
    assert torch.equal(
        made(image=picture(), output_type="pt", output="images"),
        other(picture(), color_fix="none", output_type="pt").images,
    )


def test_bad_input_is_refused_as_by_the_pipeline(tiny_mini):
    made = of(tiny_mini)
    for options, message in (
        ({"scale": 2, "height": 8}, "both given"),
        ({"t": 2}, "from 0"),
        ({"color_fix": "hsv"}, "color_fix"),
    ):
        with pytest.raises(ValueError, match=message):
            made(image=picture(), **options)
    with pytest.raises(ValueError, match="image"):
        made(t=0.3)


LOAD = """
import sys
import torch
from diffusers import ModularPipeline

for name in sys.argv[1:]:
    pipe = ModularPipeline.from_pretrained(name, trust_remote_code=True)
    pipe.load_components()
    images = pipe(image=torch.load("picture.pt"), t=0.3, output_type="pt", output="images")
    print(type(pipe.blocks).__module__, type(pipe.unet).__name__)
    torch.save(images, name + ".pt")
"""


def test_folders_in_a_fresh_process(tiny_mini, tiny_sd, tmp_path):
    pipelines = {"mini": tiny_mini, "sd": tiny_sd}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(tmp_path / "first" / name)
        folders.write_modular(pipeline, tmp_path / "first" / name, f"someone/{name}")
        shutil.move(tmp_path / "first" / name, tmp_path / name)  # a copy, as from the hub
    torch.save(picture(), tmp_path / "picture.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, *pipelines]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "ctsr.modular TimeConditionedUNetMini",
        "ctsr.modular UNet2DConditionModel",
    ]
    for name, pipeline in pipelines.items():
        expected = pipeline(picture(), t=0.3, output_type="pt").images
        assert (torch.load(tmp_path / f"{name}.pt") - expected).abs().max() < 1e-5
