"""The VAE and the LATENT are the host's own types: its nodes take them."""

import numpy as np
import pytest

from tests.host.graphs import MINI, five, node, saved, succeed


def with_host_decodes(prompt):
    """The same, with the host's two decoders beside ours."""
    prompt["plain"] = node("VAEDecode", samples=["dial", 0], vae=["load", 1])
    sizes = {"tile_size": 512, "overlap": 128, "temporal_size": 64, "temporal_overlap": 8}
    prompt["tiled"] = node("VAEDecodeTiled", samples=["dial", 0], vae=["load", 1], **sizes)
    return prompt


@pytest.mark.parametrize("checkpoint", ["tiny.safetensors", "tiny-sd.safetensors"])
@pytest.mark.parametrize("file", ["small.png", "odd.png"])
def test_vae_decode_is_our_untiled_decode_before_crop_and_colour_fix(server, file, checkpoint):
    prompt = with_host_decodes(five(file, checkpoint, color_fix="none"))
    plain, ours = saved(server, prompt, ["plain", 0], ["decode", 0])
    height, width = ours.shape[1:3]
    assert plain.shape[1] % 8 == plain.shape[2] % 8 == 0
    np.testing.assert_array_equal(plain[:, :height, :width], ours)


def test_vae_decode_tiled_is_close(server):
    prompt = with_host_decodes(five("hippo.png", MINI, scale=2.5, color_fix="none"))
    tiled, ours = saved(server, prompt, ["tiled", 0], ["decode", 0])
    assert tiled.shape == ours.shape == (1, 480, 640, 3)
    assert np.abs(tiled - ours).max() <= 2 / 255
    assert np.abs(tiled - ours).max() > 0, "it was tiled"


def test_vae_encode_is_the_encode_of_the_enlarged_picture(server):
    prompt = five(scale=1.0)  # 40x28: padded to 48x32 by ours, cropped to 40x24 by the host
    prompt["scaled"] = node(
        "ImageScale", image=["picture", 0], upscale_method="area", width=48, height=32, crop="center"
    )
    prompt["encode"]["inputs"]["image"] = ["scaled", 0]
    prompt["plain"] = node("VAEEncode", pixels=["scaled", 0], vae=["load", 1])
    plain, ours = saved(server, prompt, ["plain", 0], ["encode", 0])
    np.testing.assert_allclose(plain, ours, atol=1e-5, rtol=0)


def test_latents_pass_through_the_hosts_files(server):
    prompt = five(color_fix="none")
    prompt["keep"] = node("SaveLatent", samples=["dial", 0], filename_prefix="kept")
    kept = server.output(succeed(server, prompt).outputs["keep"]["latents"][0])
    kept.rename(server.base / "input" / kept.name)
    again = {
        "load": prompt["load"],
        "latent": node("LoadLatent", latent=kept.name),
        "decode": node("TiledVAEDecode", vae=["load", 1], latent=["latent", 0], tile=0, color_fix="wavelet"),
    }
    (ours,) = saved(server, prompt, ["decode", 0])
    (loaded,) = saved(server, again, ["decode", 0])
    np.testing.assert_allclose(loaded, ours, atol=1e-5, rtol=0)
