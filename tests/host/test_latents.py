"""The host's own latent nodes between ours: number, size, crop and colours of the picture stay what they are."""

import numpy as np
import pytest

from tests.host.graphs import MINI, TINY, Prompt, five, node, put, refusal, saved

ODD = "odd.png"
"""37x29 pixels: a result of 148x116, in latents of 160x128 where a model of factor 8 pads to multiples of 16."""
SIZE = (116, 148)


def between(source: str, target: str, *changes: dict, checkpoint: str = TINY, image: str = ODD) -> Prompt:
    """The graph of five nodes with nodes of the host between two of ours, each after the one before it."""
    prompt, last = five(image, checkpoint), source
    for i, change in enumerate(changes):
        prompt[f"change {i}"] = {**change, "inputs": {**change["inputs"], "samples": [last, 0]}}
        last = f"change {i}"
    prompt[target]["inputs"]["latent"] = [last, 0]
    return prompt


def decoded(server, prompt: Prompt) -> np.ndarray:
    return saved(server, prompt, ["decode", 0])[0]


@pytest.fixture(scope="module")
def plain(server):
    """The picture that no node in between changes, [1, 116, 148, 3]."""
    return decoded(server, five(ODD, TINY))


def flip(kind: str):
    return node("LatentFlip", flip_method=kind)


def turned(degrees: str):
    return node("LatentRotate", rotation=f"{degrees} degrees")


ROWS, COLUMNS = flip("x-axis: vertically"), flip("y-axis: horizontally")
SAME = {
    "repeat": ((node("RepeatLatentBatch", amount=3),), lambda x: np.concatenate([x] * 3)),
    "from batch": (
        (node("RepeatLatentBatch", amount=3), node("LatentFromBatch", batch_index=1, length=1)),
        lambda x: x,
    ),
    "flip rows": ((ROWS,), lambda x: x[:, ::-1]),
    "flip columns": ((COLUMNS,), lambda x: x[:, :, ::-1]),
    "flip both": ((ROWS, COLUMNS), lambda x: x[:, ::-1, ::-1]),
    "rotate 90": ((turned("90"),), lambda x: np.rot90(x, 1, (2, 1))),
    "rotate 180": ((turned("180"),), lambda x: np.rot90(x, 2, (2, 1))),
    "rotate 270": ((turned("270"),), lambda x: np.rot90(x, 3, (2, 1))),
    "rotate and flip": ((turned("90"), ROWS), lambda x: np.rot90(x, 1, (2, 1))[:, ::-1]),
    "noise mask": ((node("SetLatentNoiseMask", mask=["mask", 0]),), lambda x: x),
}


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize(("source", "target"), [("dial", "decode"), ("encode", "unet")])
def test_the_same_picture_comes_out_as_often_and_turned_as_the_latent(server, plain, source, target, kind):
    changes, expected = SAME[kind]
    prompt = between(source, target, *changes)
    prompt["mask"] = put(server, np.ones((1, 29, 37), np.float32))
    np.testing.assert_allclose(decoded(server, prompt), expected(plain), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("source", "target"), [("dial", "decode"), ("encode", "unet")])
def test_batches_of_several_pictures_keep_each_ones_colours(server, source, target):
    """LatentBatch copies the first latent's entries, RebatchLatents none."""
    plain, prompt = decoded(server, five(ODD, MINI)), between(source, target, checkpoint=MINI)
    prompt["second"] = put(server, np.full((1, 29, 37, 3), 0.25, np.float32))
    for name in ("encode", "unet", "dial"):
        prompt[f"{name} 2"] = {**prompt[name], "inputs": dict(prompt[name]["inputs"])}
    prompt["encode 2"]["inputs"]["image"] = ["second", 0]
    prompt["unet 2"]["inputs"]["latent"] = ["encode 2", 0]
    prompt["dial 2"]["inputs"]["endpoints"] = ["unet 2", 0]
    prompt["batch"] = node("LatentBatch", samples1=[source, 0], samples2=[f"{source} 2", 0])
    prompt["rebatch"] = node("RebatchLatents", latents=["batch", 0], batch_size=2)
    prompt[target]["inputs"]["latent"] = ["rebatch", 0]
    both = decoded(server, prompt)
    np.testing.assert_allclose(both[:1], plain, atol=2e-3, rtol=0)
    assert both[1].shape == plain[0].shape
    np.testing.assert_allclose(both[1].mean(axis=(0, 1)), 0.25, atol=0.01)


def test_a_part_that_was_cut_out_shows_that_part(server, plain):
    crop = node("LatentCrop", width=96, height=64, x=64, y=64)  # of 160x128: 84x52 of them are picture
    part = decoded(server, between("dial", "decode", crop))
    assert part.shape == (1, 52, 84, 3)
    inner = np.abs(part - plain[:, 64:116, 64:148])[:, 16:, 16:]
    assert inner.mean() < 0.03  # of random weights; another part is .1 and more away
    other = np.abs(part - plain[:, 0:52, 0:84])[:, 16:, 16:]
    assert inner.mean() < other.mean() / 2


def test_a_part_that_is_nothing_but_padding_is_explained(server):
    prompt = between("dial", "decode", node("LatentCut", dim="x", index=-1, amount=1))
    assert "border that pads the picture" in refusal(server, prompt)


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"])
def test_a_resized_latent_keeps_the_crop_and_the_colours(server, plain, method):
    larger = node("LatentUpscaleBy", upscale_method=method, scale_by=1.5)
    picture = decoded(server, between("dial", "decode", larger))
    assert picture.shape == (1, 174, 222, 3)
    np.testing.assert_allclose(picture.mean(axis=(1, 2)), plain.mean(axis=(1, 2)), atol=0.03)


def test_a_latent_resized_with_a_centred_crop_loses_the_border_that_was_cut(server):
    wide = node("LatentUpscale", upscale_method="bilinear", width=160, height=64, crop="center")
    picture = decoded(server, between("dial", "decode", wide))
    assert picture.shape == (1, 64, 148, 3)  # rows 32 to 96 of 116


def test_a_latent_changed_in_place_keeps_size_and_crop(server):
    prompt = between("dial", "decode", node("LatentMultiply", multiplier=0.9))
    assert decoded(server, prompt).shape == (1, *SIZE, 3)


def test_a_composite_keeps_size_and_crop(server):
    prompt = between("dial", "decode")
    prompt["paste"] = node("LatentComposite", samples_to=["dial", 0], samples_from=["encode", 0], x=64, y=0, feather=16)
    prompt["decode"]["inputs"]["latent"] = ["paste", 0]
    assert decoded(server, prompt).shape == (1, *SIZE, 3)


def test_what_leaves_no_trace_of_the_border_is_explained(server):
    prompt = between("dial", "decode")
    prompt["wide"] = node("LatentConcat", samples1=["dial", 0], samples2=["dial", 0], dim="x")
    prompt["decode"]["inputs"]["latent"] = ["wide", 0]
    message = refusal(server, prompt)
    assert "border that pads the picture" in message
    assert "multiples of 64" in message
