"""Every stage runs for a few steps on pictures of our own making, moves what it should, and its weights upscale."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline, TimeAwareAutoencoderMini, TimeConditionedUNetMini
from training import autoencoder, export, fidelity, realism
from training.loop import Run
from training.one_step import Pairs, luma, make_pair, psnr_y
from training.photos import is_held_back, load_photos, random_crop


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures to train on, one held back, one broken."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    names = [f"{number:02d}.png" for number in range(60)]
    train = [name for name in names if not is_held_back(name)][:3]
    for name in [*train, next(name for name in names if is_held_back(name))]:
        small = rng.integers(0, 255, (20, 20, 3), np.uint8)
        Image.fromarray(small).resize((400, 400), Image.Resampling.BICUBIC).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"not a picture")
    return folder


def test_unreadable_pictures_are_named(photos: Path) -> None:
    loaded = load_photos(photos)
    assert (len(loaded.train), len(loaded.held_back), loaded.skipped) == (3, 1, ("broken.jpg",))


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a folder of"):
        load_photos(tmp_path)


def test_pairs_are_functions_of_their_number(photos: Path) -> None:
    loaded, pairs = load_photos(photos), Pairs(crop=64)
    first, again, other = (make_pair(loaded, pairs, index) for index in (4, 4, 5))
    assert first["lr"].shape == (3, 16, 16)
    assert first["sharp"].shape == first["soft"].shape == (3, 64, 64)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["lr"], other["lr"])


def test_crops_stay_inside(photos: Path) -> None:
    picture = next(iter(load_photos(photos).train.values()))
    crops = [random_crop(picture, 400, np.random.default_rng(seed)) for seed in range(8)]
    assert {crop.shape for crop in crops} == {(400, 400, 3)}
    assert len({crop.tobytes() for crop in crops}) > 1


def test_luma_and_its_psnr() -> None:
    white = torch.ones(1, 3, 4, 4)
    assert luma(white).allclose(torch.tensor(235.0), atol=0.1)
    assert psnr_y(white, -white) == pytest.approx(20 * np.log10(255 / 219), abs=0.01)


def test_sharpening_adds_contrast_and_keeps_flat_parts() -> None:
    step = torch.zeros(3, 32, 32)
    step[..., 16:] = 0.5
    sharp = realism.sharpen(step, 2.0, 1.0)
    assert sharp[..., 16].min() > 0.6
    assert sharp[..., 15].max() < -0.1
    assert torch.allclose(sharp[..., :4], step[..., :4], atol=1e-3)


def run(out: Path) -> Run:
    return Run(out, steps=2, batch=1, workers=0, validate_every=2, log_every=1)


def moved(before: torch.nn.Module, after: torch.nn.Module) -> set[str]:
    """Names of the parameters that differ."""
    old = dict(before.named_parameters())
    return {name for name, parameter in after.named_parameters() if not torch.equal(parameter, old[name])}


@pytest.mark.slow
def test_the_stages_in_a_row(photos: Path, tmp_path: Path) -> None:
    """Autoencoder, fidelity, realism, export, upscale."""
    autoencoder.train(autoencoder.Recipe(photos, run(tmp_path / "ae"), crop=64))
    pairs = Pairs(crop=64)
    fidelity.train(fidelity.Recipe(photos, tmp_path / "ae/vae", run(tmp_path / "fidelity"), pairs))
    plain = TimeConditionedUNetMini.from_pretrained(tmp_path / "fidelity/unet", low_cpu_mem_usage=False)
    groups = plain.conv_out.weight.chunk(3)
    assert groups[0].abs().sum() > 0
    assert groups[1].abs().sum() == groups[2].abs().sum() == 0
    first, second = (
        TimeAwareAutoencoderMini.from_pretrained(tmp_path / stage, low_cpu_mem_usage=False)
        for stage in ("ae/vae", "fidelity/vae")
    )
    assert any("encoder" in name for name in moved(first, second))
    assert any("decoder" in name for name in moved(first, second))
    realism.train(realism.Recipe(photos, tmp_path / "fidelity", run(tmp_path / "realism"), pairs))
    split = TimeConditionedUNetMini.from_pretrained(tmp_path / "realism/unet", low_cpu_mem_usage=False)
    assert moved(plain, split) == {"conv_out.weight", "conv_out.bias"}
    o, delta, kappa = split.conv_out.weight.chunk(3)
    assert delta.abs().sum() > 0
    assert kappa.abs().sum() == 0
    assert torch.allclose(o - delta, groups[0], atol=1e-6)  # the faithful end is stage 1's
    export.weights(tmp_path / "realism", tmp_path / "mini.safetensors")
    pipeline = CTSRPipeline.from_single_file(tmp_path / "mini.safetensors")
    picture = Image.new("RGB", (20, 12), "teal")
    ends = [np.asarray(pipeline(picture, t=t).images[0]) for t in (0.0, 1.0)]
    assert ends[0].shape == (48, 80, 3)
    assert not np.array_equal(*ends)
