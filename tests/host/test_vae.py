"""The VAE and the LATENT are the host's own types: its nodes take them."""

import numpy as np
import pytest

from tests.host.graphs import TINY, five, fresh, node, put, refusal, saved, succeed, throttles


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


@pytest.mark.parametrize("checkpoint", [TINY, "tiny-sd.safetensors"])
def test_vae_decode_tiled_takes_our_tiles_which_leave_no_seams(server, checkpoint):
    prompt = with_host_decodes(five("hippo.png", checkpoint, scale=2.5, color_fix="none"))
    prompt["tiled"]["inputs"]["tile_size"] = 256
    tiled, ours = saved(server, prompt, ["tiled", 0], ["decode", 0])
    assert tiled.shape == ours.shape == (1, 480, 640, 3)
    np.testing.assert_allclose(tiled, ours, atol=2e-5 if checkpoint == TINY else 2e-2, rtol=0)
    run = succeed(server, fresh({**prompt, "save": node("PreviewImage", images=["tiled", 0])}))
    steps = {data["value"] for data in run.data("progress") if data["node"] == "tiled"}
    assert len(steps) >= (2 if throttles(server) else 6), "it was tiled"


def test_vae_encode_tiled_is_the_untiled_encode(server):
    prompt = five("hippo.png")
    sizes = {"tile_size": 128, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    prompt["plain"] = node("VAEEncode", pixels=["picture", 0], vae=["load", 1])
    prompt["tiled"] = node("VAEEncodeTiled", pixels=["picture", 0], vae=["load", 1], **sizes)
    plain, tiled = saved(server, prompt, ["plain", 0], ["tiled", 0])
    np.testing.assert_allclose(tiled, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 40), (64, 64)])
def test_vae_encode_tiled_of_a_small_picture(server, height, width):
    prompt = five()
    prompt["picture"] = put(server, np.full((2, height, width, 3), 0.5, np.float32))
    sizes = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    prompt["tiled"] = node("VAEEncodeTiled", pixels=["picture", 0], vae=["load", 1], **sizes)
    assert saved(server, prompt, ["tiled", 0])[0].shape == (2, 4, height // 8, width // 8)


@pytest.mark.parametrize("kind", ["VAEEncode", "VAEEncodeTiled", "VAEEncodeForInpaint"])
def test_a_picture_of_less_than_a_latent_is_explained(server, kind):
    sizes = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
    further = {
        "VAEEncode": {},
        "VAEEncodeTiled": sizes,
        "VAEEncodeForInpaint": {"mask": ["mask", 0], "grow_mask_by": 0},
    }
    prompt = five()  # a mask that grows fails in the host's own code before it asks the VAE
    prompt["picture"] = put(server, np.full((1, 3, 5, 3), 0.5, np.float32))
    prompt["mask"] = put(server, np.ones((1, 3, 5), np.float32))
    prompt["tiny"] = node(kind, pixels=["picture", 0], vae=["load", 1], **further[kind])
    prompt["decode"]["inputs"]["latent"] = ["tiny", 0]
    message = refusal(server, prompt)
    assert "this VAE makes one latent of 8x8: connect a larger picture, or Time-Aware Encode" in message


def test_vae_save_writes_a_file_with_the_weights(server):
    from safetensors import safe_open

    prompt = {"load": five()["load"], "save": node("VAESave", vae=["load", 1], filename_prefix="vae/ours")}
    succeed(server, prompt)
    with safe_open(next((server.base / "output" / "vae").glob("ours*.safetensors")), "pt") as file:
        assert any(name.startswith("network.encoder") for name in file.keys())  # noqa: SIM118


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
