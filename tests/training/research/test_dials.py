"""A method's own dial beside the blended one: equal at the ends, not between them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline
from ctsr.families import get_family
from training.data.datasets import Data, open_photos
from training.data.pairs import Pairs
from training.model.unet_channels import keep_groups, widen_conv_in
from training.research.dials import compare, show


@pytest.fixture
def pipelines(make_mini: Callable[..., CTSRPipeline]) -> dict[str, CTSRPipeline]:
    """Of both families, with random weights; TADSR's table bends."""
    tadsr, oftsr = make_mini(), make_mini()
    for pipeline in (tadsr, oftsr):
        keep_groups(pipeline.unet, 4)
    tadsr.register_to_config(
        family="tadsr", parameterization="residual", encoder_timesteps=[900, 100], dial_timesteps=[900, 200, 100]
    )
    widen_conv_in(oftsr.unet)
    with torch.no_grad():
        for parameter in oftsr.unet.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    oftsr.register_to_config(family="oftsr", parameterization=None, encoder_timesteps=None)
    return {"tadsr": tadsr, "oftsr": oftsr}


@pytest.mark.parametrize(("name", "middle"), [("tadsr", 200), ("oftsr", 500)])
def test_both_dials_are_equal_at_the_ends_alone(
    pipelines: dict[str, CTSRPipeline], photos: Path, name: str, middle: int
) -> None:
    _, pairs = open_photos(Data(photos, pairs=Pairs(crop=32)))
    rows = compare(pipelines[name], pairs, (0.0, 0.5, 1.0))
    assert rows[1].timestep == middle
    assert rows[0].apart < 1e-5 > rows[2].apart
    assert rows[1].apart > 1e-2
    for row in (rows[0], rows[2]):
        assert row.exact == pytest.approx(row.blended, abs=1e-3)
    assert rows[1].exact != pytest.approx(rows[1].blended, abs=1e-6)
    assert f"{middle:4d}" in show(rows)


def test_the_pipeline_runs_the_papers_dial_and_a_file_keeps_its_table(
    pipelines: dict[str, CTSRPipeline], tmp_path: Path
) -> None:
    pipelines["tadsr"].save_single_file(tmp_path / "tadsr.safetensors")
    pipeline = CTSRPipeline.from_single_file(tmp_path / "tadsr.safetensors")
    picture = Image.radial_gradient("L").resize((24, 16)).convert("RGB")
    own = pipeline.at(0.5)
    assert own.unet is pipeline.unet
    assert own.family.timesteps == (200,)
    assert not own.family.has_dial
    ours = own(picture, output_type="latent").images
    assert torch.equal(ours, pipeline(picture, timestep=200, output_type="latent").images)
    assert (ours - pipeline(picture, t=0.5, output_type="latent").images).abs().max() > 1e-4
    assert pipeline.family.timesteps == (900, 100)
    assert own.at(1.0).family.timesteps == (100,)
    flow = pipelines["oftsr"].at(0.25)
    assert flow.family.timesteps == (749,)
    assert flow(picture, generator=torch.Generator().manual_seed(0)).images[0].size == (96, 64)


def test_a_method_without_a_dial_of_timesteps_and_a_t_that_is_none_are_refused(
    tiny_mini: CTSRPipeline, pipelines: dict[str, CTSRPipeline]
) -> None:
    with pytest.raises(ValueError, match="has no timestep for a dial: pass t to the call instead"):
        tiny_mini.at(0.5)
    with pytest.raises(ValueError, match=r"t is 1\.5: give a number from 0"):
        pipelines["tadsr"].at(1.5)
    assert [get_family("tadsr").at(t).timesteps for t in (0.0, 0.5, 1.0)] == [(500,), (350,), (200,)]
    assert not get_family("pisa").dial_is_timestep
