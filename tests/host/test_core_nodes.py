"""Forty nodes of the host wired to our IMAGE, LATENT, MASK and VAE, both ways: docs/comfyui.md has the table.

Each with a tiny model of a factor of 8, and with the built-in one. A VAE and a LATENT of the host for our nodes are in
test_faults.py.
"""

from typing import Any

import numpy as np
import pytest

from tests.comfyui import ROOT, ComfyServer
from tests.host.graphs import MINI, TINY, Prompt, five, node, one, put, saved

HEIGHT, WIDTH = 116, 148
"""Of the result of 37x29 pixels."""
PICTURE = (1, HEIGHT, WIDTH, 3)
LATENT = {TINY: (1, 4, 14, 18), MINI: (1, 48, 29, 37)}
"""Shapes of the encoded result."""
EACH_MODEL = pytest.mark.parametrize("checkpoint", [TINY, MINI], ids=["tiny", "built-in"])

# Before us: the node's inputs, where "*" is the picture, and the result's height and width, with alpha or without.
BEFORE: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "ImageScale": (
        {"image": "*", "upscale_method": "area", "width": 20, "height": 12, "crop": "disabled"},
        (1, 48, 80, 3),
    ),
    "ImageScaleBy": ({"image": "*", "upscale_method": "bicubic", "scale_by": 0.5}, (1, 56, 72, 3)),
    "ImageScaleToTotalPixels": (
        {"image": "*", "upscale_method": "area", "megapixels": 0.01, "resolution_steps": 1},
        (1, 364, 464, 3),
    ),
    "ImageInvert": ({"image": "*"}, PICTURE),
    "ImageBatch": ({"image1": "*", "image2": "*"}, (2, HEIGHT, WIDTH, 3)),
    "ImagePadForOutpaint": (
        {"image": "*", "left": 3, "top": 0, "right": 0, "bottom": 2, "feathering": 0},
        (1, 124, 160, 3),
    ),
    "ImageCrop": ({"image": "*", "width": 11, "height": 7, "x": 2, "y": 3}, (1, 28, 44, 3)),
    "RepeatImageBatch": ({"image": "*", "amount": 2}, (2, HEIGHT, WIDTH, 3)),
    "ImageFromBatch": ({"image": "*", "batch_index": 0, "length": 1}, PICTURE),
    "ImageFlip": ({"image": "*", "flip_method": "x-axis: vertically"}, PICTURE),
    "ImageRotate": ({"image": "*", "rotation": "90 degrees"}, (1, WIDTH, HEIGHT, 3)),
    "ImageBlur": ({"image": "*", "blur_radius": 1, "sigma": 1.0}, PICTURE),
    "ImageSharpen": ({"image": "*", "sharpen_radius": 1, "sigma": 1.0, "alpha": 1.0}, PICTURE),
    "ImageQuantize": ({"image": "*", "colors": 8, "dither": "none"}, PICTURE),
    "JoinImageWithAlpha": ({"image": "*", "alpha": ["mask", 0]}, (1, HEIGHT, WIDTH, 4)),
    "EmptyImage": ({"width": 9, "height": 5, "batch_size": 2, "color": 255}, (2, 20, 36, 3)),
}
# After us: "*" is our picture; what comes out of the node, () for a latent.
AFTER: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "ImageScaleBy": ({"image": "*", "upscale_method": "area", "scale_by": 0.5}, (1, 58, 74, 3)),
    "ImageBlend": ({"image1": "*", "image2": "*", "blend_factor": 0.5, "blend_mode": "normal"}, PICTURE),
    "ImageCompositeMasked": ({"destination": "*", "source": "*", "x": 8, "y": 8, "resize_source": False}, PICTURE),
    "ImageStitch": (
        {"image1": "*", "image2": "*", "direction": "right", "match_image_size": True, "spacing_width": 0,
         "spacing_color": "white"},
        (1, HEIGHT, 2 * WIDTH, 3),
    ),
    "SplitImageWithAlpha": ({"image": "*"}, PICTURE),
    "ImageToMask": ({"image": "*", "channel": "red"}, (1, HEIGHT, WIDTH)),
    "ImageColorToMask": ({"image": "*", "color": 0}, (1, HEIGHT, WIDTH)),
    "Canny": ({"image": "*", "low_threshold": 0.4, "high_threshold": 0.8}, PICTURE),
    "RebatchImages": ({"images": "*", "batch_size": 1}, PICTURE),
    "VAEEncode": ({"pixels": "*", "vae": ["load", 1]}, ()),
    "VAEEncodeTiled": (
        {"pixels": "*", "vae": ["load", 1], "tile_size": 128, "overlap": 32, "temporal_size": 64,
         "temporal_overlap": 8},
        (),
    ),
    "VAEEncodeForInpaint": (
        {"pixels": "*", "vae": ["load", 1], "mask": ["mask", 0], "grow_mask_by": 6}, ()
    ),
}  # fmt: skip
# A MASK for the dial: 37x29 pixels, or the size of the result.
MASKS: dict[str, dict[str, Any]] = {
    "SolidMask": {"value": 1.0, "width": 37, "height": 29},
    "InvertMask": {"mask": ["mask", 0]},
    "GrowMask": {"mask": ["mask", 0], "expand": 2, "tapered_corners": True},
    "FeatherMask": {"mask": ["mask", 0], "left": 4, "top": 4, "right": 4, "bottom": 4},
    "ThresholdMask": {"mask": ["mask", 0], "value": 0.5},
    "MaskComposite": {"destination": ["mask", 0], "source": ["mask", 0], "x": 0, "y": 0, "operation": "add"},
    "CropMask": {"mask": ["mask", 0], "x": 0, "y": 0, "width": 37, "height": 29},
}
# A MASK of ours, of the result's size, for a node: "*"; what comes out of the node.
OUR_MASKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "InvertMask": ({"mask": "*"}, (1, HEIGHT, WIDTH)),
    "GrowMask": ({"mask": "*", "expand": 2, "tapered_corners": True}, (1, HEIGHT, WIDTH)),
    "FeatherMask": ({"mask": "*", "left": 4, "top": 4, "right": 4, "bottom": 4}, (1, HEIGHT, WIDTH)),
    "ThresholdMask": ({"mask": "*", "value": 0.5}, (1, HEIGHT, WIDTH)),
    "MaskComposite": (
        {"destination": "*", "source": "*", "x": 0, "y": 0, "operation": "multiply"},
        (1, HEIGHT, WIDTH),
    ),
    "CropMask": ({"mask": "*", "x": 8, "y": 4, "width": 64, "height": 40}, (1, 40, 64)),
    "MaskToImage": ({"mask": "*"}, PICTURE),
    "ImageCompositeMasked": (
        {"destination": ["decode", 0], "source": ["decode", 0], "x": 0, "y": 0, "resize_source": False, "mask": "*"},
        PICTURE,
    ),
    "JoinImageWithAlpha": ({"image": ["decode", 0], "alpha": "*"}, (1, HEIGHT, WIDTH, 4)),
}
# Between dial and decode: "*" is our LATENT; what is decoded.
LATENTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "LatentAdd": ({"samples1": "*", "samples2": "*"}, PICTURE),
    "LatentSubtract": ({"samples1": "*", "samples2": "*"}, PICTURE),
    "LatentInterpolate": ({"samples1": "*", "samples2": "*", "ratio": 0.5}, PICTURE),
    "LatentBlend": ({"samples1": "*", "samples2": "*", "blend_factor": 0.5}, PICTURE),
    "LatentBatch": ({"samples1": "*", "samples2": "*"}, (2, HEIGHT, WIDTH, 3)),
    "LatentBatchSeedBehavior": ({"samples": "*", "seed_behavior": "fixed"}, PICTURE),
}


def wired(inputs: dict[str, Any], source: list[Any]) -> dict[str, Any]:
    """Inputs with the link in place of "*"."""
    return {key: source if value == "*" else value for key, value in inputs.items()}


def with_mask(server: ComfyServer, prompt: Prompt) -> Prompt:
    return {**prompt, "mask": put(server, np.tri(29, 37, dtype=np.float32)[None])}


def test_they_are_forty_and_in_the_table():
    names = {*BEFORE, *AFTER, *MASKS, *OUR_MASKS, *LATENTS}
    assert len(names) >= 40
    table = (ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in table] == []


@EACH_MODEL
@pytest.mark.parametrize("name", BEFORE)
def test_a_node_gives_us_its_picture(server, name, checkpoint):
    inputs, shape = BEFORE[name]
    prompt = with_mask(server, one("odd.png", checkpoint))
    prompt["core"] = node(name, **wired(inputs, ["picture", 0]))
    prompt["upscale"]["inputs"] |= {"image": ["core", 0], "even_sides": "never"}
    assert saved(server, prompt, ["upscale", 0])[0].shape == shape


@EACH_MODEL
@pytest.mark.parametrize("name", AFTER)
def test_a_node_takes_our_picture_and_vae(server, name, checkpoint):
    inputs, shape = AFTER[name]
    prompt = with_mask(server, one("odd.png", checkpoint))
    prompt["core"] = node(name, **wired(inputs, ["upscale", 0]))
    assert saved(server, prompt, ["core", 0])[0].shape == (shape or LATENT[checkpoint])


@EACH_MODEL
@pytest.mark.parametrize("name", MASKS)
def test_the_dial_takes_a_nodes_mask(server, name, checkpoint):
    prompt = with_mask(server, five("odd.png", checkpoint))
    prompt["core"] = node(name, **MASKS[name])
    prompt["dial"]["inputs"]["mask"] = ["core", 0]
    plain = saved(server, five("odd.png", checkpoint), ["decode", 0])[0]
    masked = saved(server, prompt, ["decode", 0])[0]
    assert masked.shape == PICTURE
    assert not np.array_equal(masked, plain)


@EACH_MODEL
@pytest.mark.parametrize("name", OUR_MASKS)
def test_a_node_takes_our_mask(server, name, checkpoint):
    inputs, shape = OUR_MASKS[name]
    prompt = five("odd.png", checkpoint)
    prompt["report"] = node("CTSRReport", image=["picture", 0], result=["decode", 0])
    prompt["core"] = node(name, **wired(inputs, ["report", 0]))
    assert saved(server, prompt, ["core", 0])[0].shape == shape


@EACH_MODEL
@pytest.mark.parametrize("name", LATENTS)
def test_a_latent_passes_through_a_node(server, name, checkpoint):
    inputs, shape = LATENTS[name]
    prompt = five("odd.png", checkpoint)
    prompt["core"] = node(name, **wired(inputs, ["dial", 0]))
    prompt["decode"]["inputs"]["latent"] = ["core", 0]
    assert saved(server, prompt, ["decode", 0])[0].shape == shape
