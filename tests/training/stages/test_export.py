"""Release files: smaller, and with a longer dial where asked."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline
from ctsr.families import blend
from ctsr.images.tensors import as_pil
from ctsr.models.autoencoder_mini2 import LATENT_CHANNELS
from training.data.pairs import paired_photos
from training.data.photos import is_held_back
from training.model.one_step import OneStep, new_mini
from training.stages.export import extend_, nearest, pairs, shortened, taught, weights


@pytest.mark.parametrize("share", [0.3, 1.0, -0.2])
def test_a_longer_or_shorter_dial_is_the_same_curve(make_mini: Callable[..., CTSRPipeline], share: float) -> None:
    old, new = OneStep(make_mini()), OneStep(make_mini())
    extend_(new.unet, share)
    lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = old(lr), new(lr)
        for t in (0.0, 0.4, 1.0):
            s = -share + (1 + share) * t
            expected = before.z0 + s * before.delta + s * (1 - s) * before.kappa
            torch.testing.assert_close(blend(after, t), expected, rtol=1e-4, atol=1e-5)


def test_a_straight_dial_is_moved_along_its_line() -> None:
    old, new = (OneStep(new_mini("ctsr")) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for parameter in old.unet.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    new.unet.load_state_dict(old.unet.state_dict())
    extend_(new.unet, 0.3)
    lr = torch.rand(1, 3, 8, 8, generator=generator)
    with torch.no_grad():
        before, after = old(lr), new(lr)
        torch.testing.assert_close(after.z0, before.z0 - 0.3 * before.delta, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(after.z0 + after.delta, before.z0 + before.delta, rtol=1e-3, atol=1e-4)


def test_a_release_is_half_the_size_and_has_its_colour_fix(tiny_mini_file: Path, tmp_path: Path) -> None:
    weights(tiny_mini_file, tmp_path / "small.safetensors", color_fix="adain")
    small = CTSRPipeline.from_single_file(tmp_path / "small.safetensors")
    assert small.config["color_fix"] == "adain"
    assert (tmp_path / "small.safetensors").stat().st_size < 0.6 * tiny_mini_file.stat().st_size


def test_a_release_has_its_own_timestep_and_names_its_stages(tiny_mini_file: Path, tmp_path: Path) -> None:
    weights(tiny_mini_file, tmp_path / "out.safetensors", timestep=250, stages=("fidelity", "joint"))
    released = CTSRPipeline.from_single_file(tmp_path / "out.safetensors")
    assert released.family.encoder_timesteps == (250,)
    assert released.config["about"] == {"stages": "fidelity, joint"}
    with pytest.raises(ValueError, match="from 0 to 999"):
        weights(tiny_mini_file, tmp_path / "other.safetensors", timestep=1000)
    assert not (tmp_path / "other.safetensors").exists()


def test_only_a_mini_can_be_extended(make_sd: Callable[..., CTSRPipeline], tmp_path: Path) -> None:
    make_sd().save_single_file(tmp_path / "sd.safetensors", torch.float32)
    with pytest.raises(ValueError, match="leave --extend at 0"):
        weights(tmp_path / "sd.safetensors", tmp_path / "out.safetensors", extend=0.2)
    assert not (tmp_path / "out.safetensors").exists()


def test_what_lies_on_every_picture_is_taken_away_and_colours_stay(tmp_path: Path) -> None:
    pipe = new_mini("ctsr")
    generator = torch.Generator().manual_seed(0)
    bias = pipe.unet.conv_out.bias
    with torch.no_grad():
        bias.copy_(0.05 * torch.randn(bias.shape, generator=generator))
        bias[2 * LATENT_CHANNELS :] = 0
    lr = torch.rand(1, 3, 3, 4, generator=generator)
    pictures = [torch.nn.functional.interpolate(lr.roll(k, 3), (24, 32), mode="bilinear") for k in range(4)]
    before = [pipe(picture, t=t, color_fix="none", output_type="pt").images for picture in pictures for t in (0.0, 1.0)]
    (tmp_path / "LR").mkdir()
    for number, picture in enumerate(pictures):
        as_pil(picture).save(tmp_path / "LR" / f"{number}.png")
    pipe.save_single_file(tmp_path / "rough.safetensors", torch.float32)
    weights(tmp_path / "rough.safetensors", tmp_path / "level.safetensors", "fp32", level=tmp_path / "LR")
    pipe = CTSRPipeline.from_single_file(tmp_path / "level.safetensors")
    after = [pipe(picture, t=t, color_fix="none", output_type="pt").images for picture in pictures for t in (0.0, 1.0)]

    def pattern(results: list[torch.Tensor], end: int) -> torch.Tensor:
        """[3, 4, 4]: the mean at each place of a cell, less the cell's own."""
        cells = torch.stack([x.reshape(3, -1, 4, x.shape[3] // 4, 4).mean((1, 3)) for x in results[end::2]]).mean(0)
        return cells - cells.mean((1, 2), keepdim=True)

    for end in (0, 1):
        assert pattern(after, end).abs().max() < 0.2 * pattern(before, end).abs().max()
        colours = [torch.stack([x.mean((0, 2, 3)) for x in results[end::2]]) for results in (before, after)]
        torch.testing.assert_close(*colours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("extend", [-1.0, -2.0, float("nan")])
def test_a_dial_of_which_nothing_is_left_is_refused(tiny_mini_file: Path, tmp_path: Path, extend: float) -> None:
    with pytest.raises(ValueError, match="give more than -1"):
        weights(tiny_mini_file, tmp_path / "out.safetensors", extend=extend)
    assert not (tmp_path / "out.safetensors").exists()


def test_pairs_of_photographs_of_which_none_is_held_back(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photos.glob("*.png"):
        if not is_held_back(path.name):
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="is held back"):
        pairs(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_held_back_pairs_are_written_as_pictures(photos: Path, tmp_path: Path) -> None:
    pairs(photos, tmp_path, size=128)
    with Image.open(tmp_path / "LR/000.png") as lr, Image.open(tmp_path / "HR/000.png") as hr:
        assert (lr.size, hr.size) == ((32, 32), (128, 128))


def test_held_back_pairs_are_as_soft_as_asked(photos: Path, tmp_path: Path) -> None:
    def acutance(folder: Path) -> float:
        with Image.open(folder / "HR/000.png") as hr:
            return float(np.abs(np.diff(np.asarray(hr, dtype=np.float64), axis=0)).mean())

    pairs(photos, tmp_path / "sharp", size=128, softness=(0.0, 0.0))
    pairs(photos, tmp_path / "soft", size=128, softness=(6.0, 7.0))
    assert acutance(tmp_path / "soft") < 0.8 * acutance(tmp_path / "sharp")


def test_a_models_pictures_of_photographs_are_pairs(photos: Path, tiny_mini_file: Path, tmp_path: Path) -> None:
    taught(photos, tiny_mini_file, tmp_path, count=3, size=64)
    rows = paired_photos(tmp_path / "LR", tmp_path / "t1", tmp_path / "HR", tmp_path / "t0").rows
    assert [row.lr.shape for row in rows] == [(16, 16, 3)] * 3
    pipe = CTSRPipeline.from_single_file(tiny_mini_file)
    for row in rows:
        for t, picture in ((0.0, row.realistic), (1.0, row.target)):
            assert picture is not None
            made = np.asarray(pipe(Image.fromarray(row.lr), t=t).images[0], np.int16)
            assert np.abs(made - picture).max() <= 1


def test_the_block_that_does_least_is_left_out(tmp_path: Path) -> None:
    pipe, generator = new_mini("ctsr"), torch.Generator().manual_seed(0)
    for number, parameter in enumerate(
        (*(block.conv2.weight for block in pipe.unet.blocks), pipe.unet.conv_out.weight)
    ):
        size = 1e-4 if number == 3 else 0.03
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    kept = [block.conv2.weight for number, block in enumerate(pipe.unet.blocks) if number != 3]
    (tmp_path / "LR").mkdir()
    as_pil(torch.rand(1, 3, 12, 12, generator=generator)).save(tmp_path / "LR" / "0.png")
    pipe.save_single_file(tmp_path / "long.safetensors")
    shortened(tmp_path / "long.safetensors", tmp_path / "LR", len(kept), tmp_path / "short.safetensors")
    short = CTSRPipeline.from_single_file(tmp_path / "short.safetensors").unet
    assert len(short.blocks) == short.config["layers_per_block"] == len(kept)
    assert all(torch.equal(block.conv2.weight, weight) for block, weight in zip(short.blocks, kept, strict=True))
    with pytest.raises(ValueError, match="no ctsr-mini 2 of more than 9 blocks"):
        shortened(tmp_path / "long.safetensors", tmp_path / "LR", 9, tmp_path / "none.safetensors")


def test_of_several_restorers_the_picture_nearest_to_the_truth_is_taken(
    perceptual_weights: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    truth = {name: rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for name in ("one.png", "two.png")}
    for folder, good in (("HR", ("one.png", "two.png")), ("a", ("one.png",)), ("b", ("two.png",))):
        (tmp_path / folder).mkdir()
        for name, pixels in truth.items():
            Image.fromarray(pixels if name in good else 255 - pixels).save(tmp_path / folder / name)
    nearest(tmp_path / "HR", (tmp_path / "a", tmp_path / "b"), perceptual_weights, tmp_path / "best")
    for name, pixels in truth.items():
        assert np.array_equal(np.asarray(Image.open(tmp_path / "best" / name)), pixels)
    (tmp_path / "b" / "two.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.png is missing"):
        nearest(tmp_path / "HR", (tmp_path / "a", tmp_path / "b"), perceptual_weights, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_without_pictures_chooses_no_blocks(tmp_path: Path) -> None:
    (tmp_path / "LR").mkdir()
    new_mini("ctsr").save_single_file(tmp_path / "long.safetensors")
    with pytest.raises(FileNotFoundError, match="no picture under"):
        shortened(tmp_path / "long.safetensors", tmp_path / "LR", 2, tmp_path / "short.safetensors")
    assert not (tmp_path / "short.safetensors").exists()
