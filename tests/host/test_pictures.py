"""The pictures of the nodes are those of the library."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.host.graphs import MINI, SMALL, five, fresh, node, one, picture_of, put, saved, succeed

CASES = [(SMALL, 0.5, 4.0), ("odd.png", 0.0, 4.0), ("odd.png", 1.0, 2.7), ("pixel.png", 0.3, 4.0)]


@pytest.mark.parametrize(("file", "t", "scale"), CASES)
def test_graph_and_beginners_node_give_the_floats_of_the_pipeline(server, file, t, scale):
    prompt = five(file, MINI, t=t, scale=scale)
    prompt |= {
        "with model": node("CTSRUpscale", image=["picture", 0], t=t, scale=scale, model=["load", 0]),
        "without": node("CTSRUpscale", image=["picture", 0], t=t, scale=scale),
        "pipeline": node("ProbePipeline", model="mini", file=file, t=t, scale=scale),
    }
    sources = ("decode", "with model", "without", "pipeline")
    graph, with_model, without, pipeline = saved(server, prompt, *([source, 0] for source in sources))
    width, height = Image.open(server.base / "input" / file).size
    assert pipeline.shape == (1, round(height * scale), round(width * scale), 3)
    assert pipeline.std() > 0.01 or file == "pixel.png"
    np.testing.assert_array_equal(graph, pipeline)
    np.testing.assert_array_equal(with_model, pipeline)
    np.testing.assert_array_equal(without, pipeline)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_sd_shaped_checkpoint_gives_the_floats_of_the_pipeline(server, tiny_sd, kind):
    name = "tiny-sd.safetensors"
    if kind == "folder":
        name = "tiny-sd-folder"
        tiny_sd.save_pretrained(server.base / "models" / "ctsr" / name)
    path = str(server.base / "models" / "ctsr" / name)
    prompt = five("odd.png", name, t=0.25)
    prompt["pipeline"] = node("ProbePipeline", model=path, file="odd.png", t=0.25, scale=4.0)
    graph, pipeline = saved(server, prompt, ["decode", 0], ["pipeline", 0])
    np.testing.assert_array_equal(graph, pipeline)


def test_png_of_the_host_is_within_one_level_of_the_command_lines(server, tmp_path):
    run = succeed(server, five("odd.png", MINI, t=0.25, scale=3.0))
    command = [sys.executable, "-m", "ctsr", "upscale", str(server.base / "input" / "odd.png")]
    options = ["-o", str(tmp_path / "out.png"), "--t", "0.25", "--scale", "3", "--precision", "fp32"]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=120)
    ours = np.asarray(Image.open(tmp_path / "out.png"), np.int16)
    theirs = np.asarray(Image.open(picture_of(server, run)), np.int16)
    assert ours.shape == theirs.shape == (87, 111, 3)
    assert np.abs(ours - theirs).max() <= 1


def test_tiles_of_the_mini_change_nothing(server):
    whole, tiled = (saved(server, fresh(five("hippo.png", tile=tile)), ["decode", 0])[0] for tile in (0, 256))
    assert whole.shape == (1, 768, 1024, 3)
    # The host computes with the threads of the machine, whose kernels round by the size of a tile: 2.5e-5 seen.
    np.testing.assert_allclose(tiled, whole, atol=5e-5, rtol=0)


@pytest.mark.parametrize(("width", "height", "size"), [(100, 0, (100, 70)), (0, 70, (100, 70)), (99, 33, (99, 33))])
def test_width_and_height(server, width, height, size):
    prompt = five()
    prompt["encode"]["inputs"] |= {"width": width, "height": height}
    assert Image.open(picture_of(server, succeed(server, prompt))).size == size


def test_alpha_is_kept(server):
    alpha = np.zeros((32, 24), np.uint8)
    alpha[8:24, 6:18] = 255
    picture = np.full((32, 24, 3), (200, 90, 40), np.uint8)
    Image.fromarray(np.dstack([picture, alpha])).save(server.base / "input" / "alpha.png")
    results = []
    for prompt, target, source in ((five("alpha.png"), "encode", "decode"), (one("alpha.png"), "upscale", "upscale")):
        prompt["join"] = node("JoinImageWithAlpha", image=["picture", 0], alpha=["picture", 1])
        prompt[target]["inputs"]["image"] = ["join", 0]
        run = succeed(server, prompt)
        results.append(np.asarray(Image.open(picture_of(server, run))))
        (floats,) = saved(server, prompt, [source, 0])
        assert floats.shape == (1, 128, 96, 4)
    for result in results:
        assert result.shape == (128, 96, 4)
        assert result[64, 48, 3] == 255
        assert result[4, 4, 3] == 0
    np.testing.assert_array_equal(*results)


def test_a_batch_is_its_pictures(server):
    names = ["hippo.png", "mural.jpg", "colosseum.jpg"]
    prompt = five(scale=1.0)
    prompt |= {name: node("LoadImage", image=name) for name in names}
    prompt["two"] = node("ImageBatch", image1=[names[0], 0], image2=[names[1], 0])
    prompt["three"] = node("ImageBatch", image1=["two", 0], image2=[names[2], 0])
    prompt["encode"]["inputs"]["image"] = ["three", 0]
    prompt["upscale"] = node("CTSRUpscale", image=["three", 0], t=0.5, scale=1.0, model=["load", 0])
    batch, upscaled = saved(server, prompt, ["decode", 0], ["upscale", 0])
    assert batch.shape == (3, 192, 256, 3)
    np.testing.assert_array_equal(upscaled, batch)
    for i, name in enumerate(names):
        (single,) = saved(server, five(name, scale=1.0), ["decode", 0])
        np.testing.assert_array_equal(batch[i : i + 1], single)


def test_sweep_gives_what_the_dial_gives(server):
    prompt = five()
    prompt["sweep"] = node("CTSRSweep", vae=["load", 1], endpoints=["unet", 0], count=3, tile=0, color_fix="wavelet")
    images, strip = saved(server, prompt, ["sweep", 0], ["sweep", 1])
    assert images.shape == (3, 112, 160, 3)
    assert strip.shape[0] == 1
    assert strip.shape[2] > 3 * strip.shape[1] / 2, "three panels side by side"
    for image, t in zip(images, (0, 0.5, 1), strict=True):
        (single,) = saved(server, five(t=t), ["decode", 0])
        np.testing.assert_array_equal(image, single[0])
    assert np.abs(images[0] - images[2]).max() > 0.01


def test_mask_sets_its_own_t(server):
    mask = np.zeros((1, 28, 40), np.float32)
    mask[:, :, :20] = 1  # the left half
    prompt = five(t=0.0, color_fix="none")
    prompt["mask"] = put(server, mask)
    prompt["dial"]["inputs"] |= {"mask": ["mask", 0], "t_inside": 1.0, "feather": 0}
    (mixed,) = saved(server, prompt, ["dial", 0])
    (outside,) = saved(server, five(t=0.0), ["dial", 0])
    (inside,) = saved(server, five(t=1.0), ["dial", 0])
    assert np.abs(inside - outside).max() > 0.01
    half = mixed.shape[-1] // 2
    # The mask is enlarged with the picture, so that its edge reaches into the cells beside it.
    np.testing.assert_array_equal(mixed[..., : half - 1], inside[..., : half - 1])
    np.testing.assert_array_equal(mixed[..., half + 1 :], outside[..., half + 1 :])


def test_the_mask_of_a_picture_without_alpha_is_none(server):
    prompt = five(t=0.3)
    prompt["dial"]["inputs"] |= {"mask": ["picture", 1], "t_inside": 1.0}
    (with_mask,) = saved(server, prompt, ["dial", 0])
    (without,) = saved(server, five(t=0.3), ["dial", 0])
    np.testing.assert_array_equal(with_mask, without)


def test_latents_are_unscaled_and_fp32(server, tiny_mini):
    picture = torch.from_numpy(np.array(Image.open(server.base / "input" / SMALL))).permute(2, 0, 1)[None] / 255
    expected = tiny_mini.encode_unscaled(picture, 112, 160)[0]
    (latent,) = saved(server, five(), ["encode", 0])
    np.testing.assert_allclose(latent, expected.numpy(), atol=1e-4, rtol=0)
