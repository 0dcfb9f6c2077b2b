"""What goes wrong ends in one sentence that names the input and the remedy, and the next good prompt works."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.comfyui import ComfyServer
from tests.host.graphs import (
    TINY,
    Prompt,
    five,
    fresh,
    linked,
    node,
    one,
    picture_of,
    put,
    refusal,
    saved,
    succeed,
)


def assert_explains(message: str, *words: str) -> None:
    """One line, a full sentence, with all these words."""
    assert "\n" not in message
    assert message.endswith((".", ")."))
    assert [word for word in words if word not in message] == [], message


# --- values over a link, which the host does not check ------------------------------------------------------------

VALUES = [
    (five, "dial.t", math.nan, ("t is nan", "from 0 (most realistic) to 1 (most faithful)")),
    (five, "dial.t", "0.5", ("t is '0.5'", "from 0 (most realistic) to 1 (most faithful)")),
    (five, "dial.t", 9, ("t is 9", "from 0 (most realistic) to 1 (most faithful)")),
    (five, "dial.t", -0.1, ("t is -0.1", "from 0 (most realistic) to 1 (most faithful)")),
    (five, "dial.t_inside", math.nan, ("t_inside is nan", "from 0 (most realistic) to 1 (most faithful)")),
    (five, "dial.feather", -1, ("feather is -1", "from 0 to 1024")),
    (five, "encode.scale", math.nan, ("scale is nan", "from 0.1 to 16")),
    (five, "encode.scale", 0.05, ("scale is 0.05", "from 0.1 to 16")),
    (five, "encode.scale", 1e6, ("scale is 1000000", "from 0.1 to 16")),
    (five, "encode.timestep", 1000, ("timestep is 1000", "from -1 to 999")),
    (five, "encode.tile", 64, ("tile", "64", "at least 128")),
    (five, "encode.width", math.nan, ("width is nan", "whole number from 0 to 65536")),
    (five, "encode.seed", 1.5, ("seed is 1.5", "whole number from 0")),
    (five, "unet.tile", -5, ("tile is -5", "whole number from 0 to 8192")),
    (five, "decode.tile", 1, ("tile", "1", "at least 128")),
    (five, "decode.color_fix", "hue", ("color_fix is 'hue'", "choose one of none, wavelet, adain")),
    (five, "load.precision", "fp64", ("precision is 'fp64'", "choose one of auto, fp32, bf16, fp16")),
    (five, "load.precision", "fp16", ("fp16 is for GPUs", "choose precision bf16 or fp32")),
    (five, "load.attention", "flash", ("attention is 'flash'", "choose one of auto, xformers, sdpa")),
    (five, "load.checkpoint", "absent.safetensors", ("checkpoint is 'absent.safetensors'", TINY, "models/ctsr")),
    (five, "load.checkpoint", "../../secret", ("checkpoint is '../../secret'", "choose one of")),
    (one, "upscale.t", math.nan, ("t is nan", "from 0 (most realistic) to 1 (most faithful)")),
    (one, "upscale.t", 9, ("t is 9", "from 0 (most realistic) to 1 (most faithful)")),
    (one, "upscale.scale", math.inf, ("scale is inf", "from 0.1 to 16")),
]


@pytest.mark.parametrize(("graph", "name", "value", "words"), VALUES, ids=[f"{x[1]}={x[2]}" for x in VALUES])
def test_value_over_a_link(server, graph, name, value, words):
    assert_explains(refusal(server, linked(graph(), name, value)), *words)


def test_values_that_the_host_checks_never_run(server):
    assert "t" in refusal(server, five(t=9))
    prompt = five()
    prompt["load"]["inputs"]["checkpoint"] = "absent.safetensors"
    assert refusal(server, prompt)


@pytest.mark.parametrize("count", [1, 22])
def test_count_of_a_sweep(server, count):
    prompt = linked(with_sweep(five()), "sweep.count", count)
    assert_explains(refusal(server, prompt), f"count is {count}", "from 2 to 21")


def with_sweep(prompt: Prompt) -> Prompt:
    """The same, with a sweep in place of dial and decode."""
    prompt["sweep"] = node("CTSRSweep", vae=["load", 1], endpoints=["unet", 0], count=3, tile=0, color_fix="none")
    prompt["save"]["inputs"]["images"] = ["sweep", 1]
    return prompt


# --- files --------------------------------------------------------------------------------------------------------


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return Path.mkdir, (self.folder,)


def damaged(kind: str, good: bytes, trap: Path) -> bytes:
    """Content of a file that is no checkpoint."""
    if kind == "truncated":
        return good[: len(good) // 2]
    if kind == "header":
        return good[:20]
    if kind == "pointer":
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 25212624\n"
    return pickle.dumps(Trap(trap)) if kind == "pickle" else b""


FILES = {
    "truncated": ("truncated", "fetch it again"),
    "header": ("truncated", "fetch it again"),
    "pointer": ("git-lfs pointer", "git lfs pull"),
    "pickle": ("not a safetensors file", "fetch it again"),
    "empty": ("not a safetensors file", "fetch it again"),
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_file(server, kind):
    path, trap = server.base / "models" / "ctsr" / f"{kind}.safetensors", server.base / "trap"
    path.write_bytes(damaged(kind, path.with_name(TINY).read_bytes(), trap))
    assert_explains(refusal(server, five(checkpoint=path.name)), path.name, *FILES[kind])
    assert not trap.exists()


def test_errors_show_no_folder_of_the_machine(server):
    path = server.base / "models" / "ctsr" / "altered.safetensors"
    content = bytearray(path.with_name(TINY).read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    run = server.run(five(checkpoint=path.name))
    (error,) = run.data("execution_error")
    assert error["exception_type"] == "ValueError"
    assert_explains(run.error, path.name, "its weights were changed after ctsr wrote it", "fetch it again")
    assert str(server.base) not in run.error


def test_a_checkpoint_in_a_folder_is_found_with_the_separators_of_every_system(server):
    folder = server.base / "models" / "ctsr" / "some folder"
    folder.mkdir()
    (folder / "inner.safetensors").write_bytes((folder.parent / TINY).read_bytes())
    for name in ("some folder/inner.safetensors", "some folder\\inner.safetensors"):
        succeed(server, fresh(five(checkpoint=name)))


def test_somebody_elses_safetensors(server):
    from safetensors.torch import save_file

    path = server.base / "models" / "ctsr" / "theirs.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    assert_explains(refusal(server, five(checkpoint=path.name)), path.name, "ctsr did not write")


def test_a_file_that_goes_away(server, tiny_mini):
    path = server.base / "models" / "ctsr" / "gone.safetensors"
    tiny_mini.save_single_file(path)
    succeed(server, five(checkpoint=path.name))
    path.unlink()
    assert_explains(refusal(server, five(checkpoint=path.name)), path.name, "models/ctsr", "refresh")


# --- pictures -----------------------------------------------------------------------------------------------------

NOISE = np.random.default_rng(0)
IMAGES = {
    "zero height": (NOISE.random((1, 0, 5, 3), np.float32), ("image is empty", "connect")),
    "zero batch": (NOISE.random((0, 5, 5, 3), np.float32), ("image is empty", "connect")),
    "NaN": (np.full((1, 4, 4, 3), np.nan, np.float32), ("image holds values", "nan", "from 0 to 1")),
    "one NaN": (np.r_[np.zeros(47), np.nan].reshape(1, 4, 4, 3).astype(np.float32), ("image holds", "from 0 to 1")),
    "0 to 255": (NOISE.random((1, 4, 4, 3), np.float32) * 255, ("image holds values", "from 0 to 1")),
    "5 channels": (NOISE.random((1, 4, 4, 5), np.float32), ("image has shape [1, 4, 4, 5]", "3 or 4 channels")),
    "no batch": (NOISE.random((4, 4, 3), np.float32), ("image has shape [4, 4, 3]", "connect an IMAGE")),
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize(("graph", "target"), [(five, "encode"), (one, "upscale")])
def test_bad_image(server, graph, target, kind):
    array, words = IMAGES[kind]
    prompt = graph()
    prompt["picture"] = put(server, array)
    assert_explains(refusal(server, prompt), *words)


@pytest.mark.parametrize("graph", [five, one])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 13)])
def test_good_image_of_any_shape(server, graph, channels, size):
    height, width = size
    prompt = graph()
    prompt["picture"] = put(server, NOISE.random((1, height, width, channels), np.float32))
    picture = Image.open(picture_of(server, succeed(server, prompt)))
    assert picture.size == (4 * width, 4 * height)
    assert picture.mode == ("RGBA" if channels == 4 else "RGB")


# --- masks --------------------------------------------------------------------------------------------------------

MASKS = {
    "proportions": ((1, 40, 28), ("mask is 28x40", "proportions", "160x112", "same picture")),
    "batch": ((2, 28, 40), ("mask holds 2 masks for 1 pictures", "connect one")),
    "channels": ((1, 28, 40, 3), ("mask has shape [1, 28, 40, 3]", "connect a MASK")),
    "zero size": ((1, 0, 40), ("mask has shape [1, 0, 40]", "connect a MASK")),
}


@pytest.mark.parametrize("kind", MASKS)
def test_bad_mask(server, kind):
    shape, words = MASKS[kind]
    assert_explains(refusal(server, with_mask(server, np.ones(shape, np.float32))), *words)


def test_mask_with_nan(server):
    prompt = with_mask(server, np.full((1, 28, 40), np.nan, np.float32))
    assert_explains(refusal(server, prompt), "mask holds NaN", "from 0 to 1")


@pytest.mark.parametrize("shape", [(28, 40), (1, 28, 40), (1, 112, 160), (1, 14, 20), (1, 57, 81)])
def test_mask_of_any_scale(server, shape):
    succeed(server, with_mask(server, np.ones(shape, np.float32)))


def test_mask_of_a_picture_that_is_stretched(server):
    prompt = with_mask(server, np.ones((1, 28, 40), np.float32))
    prompt["encode"]["inputs"] |= {"width": 64, "height": 128}
    succeed(server, prompt)


def with_mask(server: ComfyServer, mask: np.ndarray) -> Prompt:
    """The graph of five nodes with a mask."""
    prompt = five()
    prompt["mask"] = put(server, mask)
    prompt["dial"]["inputs"]["mask"] = ["mask", 0]
    return prompt


# --- latents and VAEs ---------------------------------------------------------------------------------------------


def test_latent_of_another_kind_of_model(server):
    prompt = five()
    prompt["latent"] = node("EmptySD3LatentImage", width=64, height=64, batch_size=1)
    for target in ("unet", "decode"):
        wrong = five()
        wrong["latent"] = prompt["latent"]
        wrong[target]["inputs"]["latent"] = ["latent", 0]
        words = ("latent has shape [1, 16, 8, 8]", "have 4 channels", "connect the latent")
        assert_explains(refusal(server, wrong), *words)


@pytest.mark.parametrize("target", ["unet", "decode"])
def test_latent_with_nan(server, target):
    prompt = five()
    prompt["latent"] = put(server, np.full((1, 4, 8, 8), np.nan, np.float32))
    prompt[target]["inputs"]["latent"] = ["latent", 1]
    assert_explains(refusal(server, prompt), "latent holds NaN", "look at what comes before")


def test_latent_of_odd_size_for_a_unet_that_halves(server):
    prompt = five()
    prompt["latent"] = put(server, NOISE.random((1, 4, 7, 8), np.float32))
    prompt["unet"]["inputs"]["latent"] = ["latent", 1]
    assert_explains(refusal(server, prompt), "latent is 8x7", "multiples of 2", "connect Time-Aware Encode")


def test_latent_of_the_host_goes_through(server):
    prompt = five()
    prompt["latent"] = node("EmptyLatentImage", width=64, height=48, batch_size=1)
    prompt["unet"]["inputs"]["latent"] = ["latent", 0]
    assert Image.open(picture_of(server, succeed(server, prompt))).size == (64, 48)


def test_vae_of_the_host(server):
    prompt = five()
    prompt["foreign"] = node("VAELoader", vae_name="pixel_space")
    prompt["decode"]["inputs"]["vae"] = ["foreign", 0]
    assert_explains(refusal(server, prompt), "vae is not a CTSR checkpoint's", "connect the VAE of Load CTSR")
    sweep = with_sweep(five())
    sweep["foreign"] = prompt["foreign"]
    sweep["sweep"]["inputs"]["vae"] = ["foreign", 0]
    assert_explains(refusal(server, sweep), "vae is not a CTSR checkpoint's", "connect the VAE of Load CTSR")


@pytest.mark.parametrize(
    ("target", "key", "output", "what"),
    [("decode", "vae", 1, "latent"), ("unet", "model", 0, "latent"), ("sweep", "vae", 1, "endpoints")],
)
def test_another_checkpoints(server, target, key, output, what):
    prompt = with_sweep(five()) if target == "sweep" else five()
    prompt["other"] = node("LoadCTSR", checkpoint="tiny-sd.safetensors", precision="fp32", attention="auto")
    prompt[target]["inputs"][key] = ["other", output]
    words = (f"{what} w", f"made by {TINY}", "tiny-sd.safetensors", "same Load CTSR")
    assert_explains(refusal(server, prompt), *words)


def test_a_type_of_another_node_is_refused_by_the_host(server):
    prompt = five()
    prompt["dial"]["inputs"]["endpoints"] = ["encode", 0]
    assert "CTSR_ENDPOINTS" in refusal(server, prompt)


def test_latent_changed_before_the_unet(server):
    prompt = five()
    prompt["change"] = node(
        "LatentUpscale", samples=["encode", 0], upscale_method="bilinear", width=320, height=192, crop="disabled"
    )
    prompt["unet"]["inputs"]["latent"] = ["change", 0]
    assert Image.open(picture_of(server, succeed(server, prompt))).size == (320, 192)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("graph", [five, one])
def test_a_whole_number_may_be_connected_to_the_dial(server, graph, value):
    prompt, source = graph(), "dial" if graph is five else "upscale"
    end = "decode" if graph is five else "upscale"
    prompt[source]["inputs"]["t"] = value
    (typed,) = saved(server, prompt, [end, 0])
    prompt["whole"] = node("PrimitiveInt", value=value)
    prompt[source]["inputs"]["t"] = ["whole", 0]
    np.testing.assert_array_equal(saved(server, prompt, [end, 0])[0], typed)
