"""From a zig-zag of measurements to an even table, and from a file to its dial."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ctsr import CTSRPipeline
from training.data.datasets import Data
from training.losses.reconstruction import gaussian_blur
from training.model.unet_channels import keep_groups
from training.research import calibrate
from training.research.calibrate import Job, Point


def points(*rows: tuple[int, float, float]) -> list[Point]:
    return [Point(*row) for row in rows]


@pytest.fixture
def picture() -> Tensor:
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5
    return gaussian_blur(noise, 5, 0.7)


@pytest.fixture
def tadsr_file(make_mini: Callable[..., CTSRPipeline], tmp_path: Path) -> Path:
    """Random weights, one output group, and about as much detail as the photographs have."""
    pipeline = make_mini()
    keep_groups(pipeline.unet, 4)
    for parameter in pipeline.vae.decoder.conv_out.parameters():
        parameter.data *= 0.01
    pipeline.register_to_config(family="tadsr", parameterization="residual", encoder_timesteps=None)
    path = tmp_path / "model.safetensors"
    pipeline.save_single_file(path, torch.float32)
    return path


def test_realism_is_one_for_the_photograph_and_less_for_less_or_more_detail(picture: Tensor) -> None:
    assert calibrate.realism(picture, picture) == pytest.approx(1)
    assert calibrate.realism(gaussian_blur(picture, 9, 1.5), picture) < 0.5
    assert calibrate.realism(2 * picture, picture) == pytest.approx(0.25, rel=0.05)


def test_detail_is_what_the_small_picture_cannot_hold() -> None:
    """A wave at 1/8 cycle a pixel keeps half its amplitude under the blur; one at 1/32 nearly all."""
    at = torch.arange(64.0)
    fine, coarse = (torch.cos(2 * torch.pi * at / period).expand(1, 3, 64, 64) / 2 for period in (8, 32))
    amplitude = 219 / 4
    assert calibrate.detail(fine) == pytest.approx((amplitude / 2) ** 2 / 2, rel=0.1)
    assert calibrate.detail(coarse) < 0.01 * calibrate.detail(fine)


def test_the_table_of_a_straight_line_is_the_line() -> None:
    table = calibrate.fit(points((100, 30, 0.2), (200, 29, 0.4), (300, 28, 0.6)))
    assert table.ends == (300, 100)
    assert [table.timestep(t) for t in (0.25, 0.5, 0.75)] == [250, 200, 150]


def test_the_table_is_even_in_realism_where_the_curve_is_not() -> None:
    table = calibrate.fit(points((100, 30, 0.1), (200, 29, 0.2), (300, 28, 0.9)))
    assert table.timestep(0.5) == 243  # realism 0.5, between 0.2 at 200 and 0.9 at 300


def test_a_zig_zag_becomes_monotone_and_the_most_faithful_of_equals_stands_for_them() -> None:
    sweep = points((100, 29.6, 0.30), (200, 29.7, 0.28), (300, 29.2, 0.5), (400, 29.3, 0.4), (500, 28.4, 0.8))
    table = calibrate.fit(sweep)
    assert table.fitted == pytest.approx((0.29, 0.29, 0.45, 0.45, 0.8))
    assert [timestep for timestep, _ in table.knots] == [200, 400, 500]
    assert table.ends == (500, 200)
    steps = [table.timestep(t) for t in calibrate.DIAL]
    assert steps == sorted(steps, reverse=True)


def test_a_model_whose_realism_falls_or_stays_has_no_dial(tadsr_file: Path) -> None:
    assert not calibrate.fit(points((100, 30, 0.500), (200, 29, 0.505))).has_dial
    assert calibrate.fit(points((100, 30, 0.50), (200, 29, 0.52))).has_dial
    table = calibrate.fit(points((100, 30, 0.5), (200, 29, 0.4)))
    assert not table.has_dial
    assert table.ends == (100, 100)
    pipeline = CTSRPipeline.from_single_file(tadsr_file)
    with pytest.raises(ValueError, match="there is no dial"):
        calibrate.store(pipeline, table, tadsr_file)


def test_other_families_and_nothing_to_measure_are_refused(tiny_mini: CTSRPipeline, tadsr_file: Path) -> None:
    pair = {"lr": torch.zeros(3, 8, 8)}
    with pytest.raises(ValueError, match="family tadsr"):
        calibrate.calibrate(tiny_mini, [pair], (100,))
    pipeline = CTSRPipeline.from_single_file(tadsr_file)
    with pytest.raises(ValueError, match="held back"):
        calibrate.calibrate(pipeline, [], (100,))
    with pytest.raises(ValueError, match="--timesteps"):
        calibrate.calibrate(pipeline, [pair], ())


def test_a_file_is_measured_and_written_with_its_dial(
    tadsr_file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(timesteps: tuple[int, ...], write: Path | None = None) -> list[dict[str, float]]:
        calibrate.main(Job(tadsr_file, Data(photos), timesteps, write))
        return json.loads(tadsr_file.with_suffix(".calibration.json").read_text())["points"]

    rows = run((900, 100, 500))
    assert [row["timestep"] for row in rows] == [100, 500, 900]
    assert len({row["psnr_y"] for row in rows}) == 3  # tau reaches the networks
    assert all(0 < row["realism"] <= 1 for row in rows)
    ranked = sorted(rows, key=lambda row: row["realism"])
    low, high = ranked[0]["timestep"], ranked[-1]["timestep"]
    if low > high:
        pytest.fail("choose other random weights: realism falls with tau")
    run((low, high), tmp_path / "with-dial.safetensors")
    pipeline = CTSRPipeline.from_single_file(tmp_path / "with-dial.safetensors")
    assert pipeline.family.encoder_timesteps == (high, low)
    assert [pipeline.at(t).family.timesteps[0] for t in (0.0, 1.0)] == [high, low]
    assert len(pipeline.config["dial_timesteps"]) == len(calibrate.DIAL)
    assert CTSRPipeline.from_single_file(tadsr_file).family.encoder_timesteps == (500, 200)
    printed = capsys.readouterr().out
    assert "PSNR-Y" in printed
    assert f"  0.0  {high:5d}" in printed
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]
