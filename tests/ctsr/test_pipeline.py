"""The pipeline on tiny models of both kinds: norm-free mini and SD-shaped."""

import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import ExifTags, Image, ImageCms
from torch import Tensor

from ctsr import CheckpointError, CTSRPipeline, PromptEmbeddings, TileMemoryError
from ctsr.images import tensors
from ctsr.models.building import make_fast
from ctsr.tiling import networks
from tests.tiled import run_tiled

SIZES = [(1, 1), (2, 3), (17, 5), (33, 64)]  # height, width


@pytest.fixture(params=["tiny_mini", "tiny_sd"])
def pipeline(request: pytest.FixtureRequest) -> CTSRPipeline:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def osediff(make_sd) -> CTSRPipeline:
    return make_sd("osediff")


def picture(height: int = 17, width: int = 22, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def run(pipeline: CTSRPipeline, image: object, **options: object) -> Tensor:
    dial = {} if "t_map" in options else {"t": 0.3}
    return pipeline(image, **{"output_type": "pt", **dial, **options}).images


# ------------------------------------------------------------------------------------------------------ size


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("scale", [1, 1.5, 2, 4])
def test_exact_size(pipeline, height, width, scale):
    out = run(pipeline, picture(height, width), scale=scale)
    assert out.shape == (1, 3, int(scale * height + 0.5), int(scale * width + 0.5))
    assert 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 90), (31, 33)])
def test_size_by_height_and_width(pipeline, height, width):
    assert run(pipeline, picture(), height=height, width=width).shape == (1, 3, height, width)


@pytest.mark.parametrize(("given", "size"), [({"height": 51}, (51, 66)), ({"width": 11}, (9, 11)), ({}, (68, 88))])
def test_one_side_follows_the_other_by_the_proportions(tiny_mini, given, size):
    assert run(tiny_mini, picture(17, 22), **given).shape[-2:] == size


def test_a_scale_below_one_keeps_at_least_a_pixel(tiny_mini):
    assert run(tiny_mini, picture(3, 20), scale=0.1).shape == (1, 3, 1, 2)


# ------------------------------------------------------------------------------------------------- the steps


def test_the_steps_make_up_the_call(pipeline):
    x = picture()
    encoded = pipeline.encode(x, 68, 88)
    ends = pipeline.endpoints(encoded.latents)
    for t in (0.3, 1.0):  # a second t on the same endpoints
        by_steps = pipeline.decode(pipeline.blend(ends, t), encoded.size, encoded.reference, "wavelet")
        assert torch.equal(by_steps, run(pipeline, x, t=t))
    assert torch.equal(run(pipeline, x, output_type="latent", t=0), ends.z0)
    assert torch.equal(x, picture())  # the input is left alone


def test_a_sweep_is_the_call_at_every_t(pipeline):
    x, t_map = picture(), torch.linspace(0, 1, 12).reshape(3, 4)
    passes: list[object] = []
    hook = pipeline.unet.register_forward_hook(lambda *_: passes.append(1))
    swept = list(pipeline.sweep(x, (68, 88), [0.3, t_map, 1.0]))
    hook.remove()
    assert len(passes) == 1
    expected = [run(pipeline, x, t=0.3), run(pipeline, x, t=None, t_map=t_map), run(pipeline, x, t=1.0)]
    assert all(torch.equal(a, b) for a, b in zip(swept, expected, strict=True))
    (latent,) = pipeline.sweep(x, (68, 88), [0.3], decode=False)
    assert torch.equal(latent, run(pipeline, x, output_type="latent"))


def test_the_unscaled_steps_differ_by_the_factor_alone(pipeline):
    x, s = picture(), pipeline.scaling_factor
    (unscaled,) = pipeline.encode_unscaled(x, 68, 88)
    (scaled,) = pipeline.encode(x, 68, 88).latents
    assert torch.equal(unscaled * s, scaled)
    for options in ((None,), ((68, 88), x, "wavelet")):
        assert torch.equal(pipeline.decode_unscaled(scaled / s, *options), pipeline.decode(scaled, *options))
    assert torch.equal(scaled, pipeline.encode(x, 68, 88).latents[0])  # decoding leaves it alone


def test_one_unscaled_latent_an_encoder_timestep(osediff):
    tadsr = CTSRPipeline(osediff.vae, osediff.unet, osediff.prompt_embeddings, family="tadsr")
    unscaled, scaled = tadsr.encode_unscaled(picture(), 68, 88), tadsr.encode(picture(), 68, 88).latents
    assert len(unscaled) == len(scaled) == 2
    assert (unscaled[0] - unscaled[1]).abs().max() > 1e-4
    for one, other in zip(unscaled, scaled, strict=True):
        assert torch.equal(one * tadsr.scaling_factor, other)


def test_the_dial_changes_the_picture(pipeline):
    ends = [run(pipeline, picture(), t=t, color_fix="none") for t in (0, 0.5, 1)]
    assert (ends[0] - ends[2]).abs().max() > 0.01
    assert (ends[1] - (ends[0] + ends[2]) / 2).abs().max() > 1e-3


def test_a_family_without_a_dial(osediff):
    assert torch.equal(run(osediff, picture(), t=0), run(osediff, picture(), t=1))


def test_encoder_timestep(pipeline):
    own = pipeline.family.encoder_timesteps[0]
    default = run(pipeline, picture())
    assert torch.equal(run(pipeline, picture(), timestep=own), default)
    assert (run(pipeline, picture(), timestep=50) - default).abs().max() > 1e-4


def test_prompt(tiny_sd):
    baked = tiny_sd.prompt_embeddings(1)
    assert torch.equal(run(tiny_sd, picture(), prompt_embeds=baked), run(tiny_sd, picture()))
    assert (run(tiny_sd, picture(), prompt_embeds=-baked) - run(tiny_sd, picture())).abs().max() > 1e-4


def test_the_constructor_leaves_its_arguments_alone(sd21):
    unet, vae = (copy.deepcopy(network) for network in sd21)
    before = [(type(module), vars(module).get("interpolate")) for module in vae.modules()]
    layout = [(x.data_ptr(), x.stride()) for network in (unet, vae) for x in network.parameters()]
    prompt = PromptEmbeddings.from_embeds(torch.zeros(1, 4, 16))
    pipeline = CTSRPipeline(vae, unet, prompt, family="osediff")
    assert pipeline.vae is vae
    assert [(type(module), vars(module).get("interpolate")) for module in vae.modules()] == before
    assert [(x.data_ptr(), x.stride()) for network in (unet, vae) for x in network.parameters()] == layout
    fast = CTSRPipeline(make_fast(copy.deepcopy(vae)), make_fast(copy.deepcopy(unet)), prompt, family="osediff")
    torch.testing.assert_close(run(pipeline, picture()), run(fast, picture()), rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------------- the dial


def test_one_t_a_picture(pipeline):
    x = picture(9, 12, batch=3)
    together = run(pipeline, x, t=[0, 0.4, 1])
    apart = torch.cat([run(pipeline, x[i : i + 1], t=t) for i, t in enumerate((0, 0.4, 1))])
    assert torch.equal(together, apart)
    assert torch.equal(run(pipeline, x, t=torch.tensor([0, 0.4, 1])), together)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13)])
def test_a_constant_map_is_a_number(pipeline, height, width):
    by_map = run(pipeline, picture(height, width), t_map=torch.full((5, 7), 0.3))
    assert (by_map - run(pipeline, picture(height, width))).abs().max() < 1e-5


def test_half_a_map(tiny_mini):
    x, half = picture(8, 64), torch.zeros(8, 64)
    half[:, 32:] = 1
    z, start, end = (run(tiny_mini, x, output_type="latent", **dial) for dial in ({"t_map": half}, {"t": 0}, {"t": 1}))
    assert torch.allclose(z[..., :15], start[..., :15])
    assert torch.allclose(z[..., 17:], end[..., 17:])
    grey = Image.fromarray((half * 255).byte().numpy())
    assert torch.allclose(run(tiny_mini, x, output_type="latent", t_map=grey), z, atol=1e-5)


def test_a_map_for_each_picture(tiny_mini):
    several, maps = picture(8, 64, batch=2), torch.stack([torch.zeros(4, 32), torch.linspace(0, 1, 32).expand(4, 32)])
    alone = [run(tiny_mini, several[i : i + 1], t_map=maps[i]) for i in range(2)]
    for given in (maps, list(maps), maps[:, None].numpy()):
        assert torch.equal(run(tiny_mini, several, t_map=given), torch.cat(alone))
    shared = run(tiny_mini, several, t_map=maps[1:])
    assert torch.equal(shared[1:], alone[1])
    assert not torch.equal(shared[:1], alone[0])


def test_a_map_lies_where_the_picture_is_and_its_padding_repeats_it():
    """A result of 12 pixels in 2 cells: the second cell is 4 pixels of the map and 4 times its last one."""
    ramp = torch.arange(12.0).expand(12, 12) / 12
    small = tensors.map_to_latents(ramp, (12, 12), (2, 2), 8)
    expected = torch.tensor([sum(range(8)) / 96, (8 + 9 + 10 + 5 * 11) / 96])
    assert torch.allclose(small[0, 0], expected.expand(2, 2))


# ------------------------------------------------------------------------------------------------ in and out


def test_output_types(pipeline):
    x = picture(6, 9, batch=2)
    tensors = run(pipeline, x)
    arrays = run(pipeline, x, output_type="np")
    pictures = run(pipeline, x, output_type="pil")
    assert np.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    assert [image.size for image in pictures] == [(36, 24)] * 2
    assert np.array_equal(np.asarray(pictures[1]), (tensors[1] * 255).round().byte().permute(1, 2, 0).numpy())
    assert run(pipeline, x, output_type="latent").shape == (2, 4, *[side // 8 for side in padded(pipeline, 24, 36)])
    assert torch.equal(pipeline(x, t=0.3, output_type="pt", return_dict=False)[0], tensors)


def padded(pipeline: CTSRPipeline, height: int, width: int) -> tuple[int, int]:
    multiple = pipeline.pad_multiple
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def test_input_types(tiny_mini):
    pixels = (picture(6, 9)[0].permute(1, 2, 0) * 255).byte().numpy()
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    expected = run(tiny_mini, tensor[None])
    image = Image.fromarray(pixels)
    locked = pixels.copy()
    locked.flags.writeable = False
    arrays = (
        pixels,
        locked,
        pixels[None],
        pixels / 255,
        pixels * np.uint16(257),
        (pixels * np.uint16(257)).astype(">u2"),
    )
    tensors = (tensor, tensor.double(), torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    inputs = (*arrays, *tensors, image, [image], [tensor], [pixels])
    for item in inputs:
        assert torch.allclose(run(tiny_mini, item), expected, atol=1e-6)
    flipped = run(tiny_mini, pixels[:, ::-1, ::-1])
    assert torch.equal(flipped, run(tiny_mini, tensor.flip(0, 2)))


def test_pillow_modes(tiny_mini, caplog):
    grey = Image.new("L", (9, 6), 90)
    assert run(tiny_mini, grey).shape == (1, 3, 24, 36)
    assert run(tiny_mini, grey.convert("P")).shape == (1, 3, 24, 36)
    assert not caplog.records
    assert run(tiny_mini, Image.new("RGBA", (9, 6), (1, 2, 3, 4))).shape == (1, 3, 24, 36)
    assert "alpha" in caplog.text
    deep = np.arange(6 * 9, dtype=np.uint16).reshape(6, 9) * 1200
    expected = run(tiny_mini, torch.from_numpy(deep / 65535).expand(1, 3, 6, 9))
    assert torch.allclose(run(tiny_mini, Image.fromarray(deep)), expected, atol=1e-6)


def test_a_profile_of_colours_is_handed_on_and_one_of_inks_used(tiny_mini, caplog):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain, inks = Image.new("RGB", (9, 6), (200, 30, 90)), Image.new("CMYK", (9, 6), (0, 255, 255, 0))
    plain.info["icc_profile"] = inks.info["icc_profile"] = profile
    results = tiny_mini([plain, inks, Image.new("RGB", (9, 6))]).images
    assert [result.info.get("icc_profile") for result in results] == [profile, None, None]
    grey = plain.convert("L")
    grey.info["icc_profile"] = profile[:16] + b"GRAY" + profile[20:]
    assert "icc_profile" not in tiny_mini(grey).images[0].info
    assert "does not fit" in caplog.text
    lab = Image.merge("LAB", [Image.new("L", (9, 6), value) for value in (138, 81, 70)])
    from_lab = ImageCms.profileToProfile(
        lab, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert torch.equal(run(tiny_mini, lab), run(tiny_mini, from_lab))


def test_pictures_of_several_sizes(tiny_mini):
    several = [Image.new("RGB", (9, 6)), Image.new("RGB", (4, 5))]
    assert [image.size for image in tiny_mini(several).images] == [(36, 24), (16, 20)]
    with pytest.raises(ValueError, match="output_type 'pil'"):
        tiny_mini(several, output_type="pt")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_lies_on_its_side_is_put_upright(tiny_mini, orientation):
    upright = Image.fromarray((picture(6, 9)[0].permute(1, 2, 0) * 255).byte().numpy())
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that undo what the tag says
    lying = upright if orientation == 1 else upright.transpose(Image.Transpose(turns[orientation]))
    lying.getexif()[ExifTags.Base.Orientation] = orientation
    grey = upright.convert("L")
    lying_map = grey if orientation == 1 else grey.transpose(Image.Transpose(turns[orientation]))
    lying_map.getexif()[ExifTags.Base.Orientation] = orientation
    assert torch.equal(run(tiny_mini, lying), run(tiny_mini, upright))
    assert torch.equal(run(tiny_mini, lying, t_map=lying_map), run(tiny_mini, upright, t_map=grey))
    assert tiny_mini(lying).images[0].size == (36, 24)


def test_color_fix(tiny_mini):
    x = picture() * 0.2
    plain, wavelet, adain = (run(tiny_mini, x, color_fix=name) for name in ("none", "wavelet", "adain"))
    assert torch.equal(run(tiny_mini, x), wavelet)
    assert not torch.equal(plain, wavelet)
    assert abs(adain.mean() - x.mean()) < abs(plain.mean() - x.mean())
    with pytest.raises(ValueError, match="reference"):
        tiny_mini.decode(torch.zeros(1, 4, 2, 2), color_fix="adain")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 0, "width": 8}, "from 1 to"),
        ({"height": 8.0}, "whole numbers"),
        ({"scale": 2, "height": 8, "width": 8}, "scale and a size are both given: pass"),
        ({"scale": 4.0, "width": 8}, "scale and a size are both given: pass"),
        ({"scale": 1e308}, "from 1 to"),
        ({"scale": 1e6}, "from 1 to"),
        ({"scale": 0}, "positive"),
        ({"scale": float("nan")}, "positive"),
        ({"tile": 64}, "at least 128"),
        ({"tile": -1}, "at least 128"),
        ({"tile": 128, "tile_overlap": 128}, "less than tile"),
        ({"tile_overlap": -1}, "from 0"),
        ({"output_type": "jpg"}, "pil, pt, np or latent"),
        ({"color_fix": "hsv"}, "color_fix .* none, wavelet, adain"),
        ({"timestep": 1000}, "0 to 999"),
        ({"timestep": 0.5}, "integer"),
        ({"t": 1.1}, "0 .most realistic. to 1"),
        ({"t": float("nan")}, "0 .most realistic. to 1"),
        ({"t": [0.1, 0.2]}, "one a picture"),
        ({"t": 0.5, "t_map": torch.zeros(4, 4)}, "t and t_map are both given: pass"),
        ({"t": None, "t_map": torch.full((4, 4), 2.0)}, "t_map has values from 2 to 2"),
    ],
)
def test_options_that_cannot_run(tiny_mini, options, message):
    with pytest.raises(ValueError, match=message):
        run(tiny_mini, picture(4, 4), **options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ([], "at least one"),
        (torch.rand(1, 4, 8, 8), "RGB"),
        (torch.rand(1, 3, 0, 8), "RGB"),
        (np.zeros((8, 8), np.uint8), "RGB"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8, uint16, or float"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (torch.rand(3, 8, 8) * 255, "Scale"),
        (torch.rand(3, 8, 8) * 2 - 1, "Scale"),
        ("photo.jpg", "PIL picture"),
    ],
)
def test_pictures_that_cannot_run(tiny_mini, image, message):
    with pytest.raises(ValueError, match=message):
        run(tiny_mini, image)


def test_what_does_not_fit_the_checkpoint(tiny_sd, osediff):
    without = CTSRPipeline(tiny_sd.vae, tiny_sd.unet)
    with pytest.raises(ValueError, match=r"prompt_embeds, \[1, tokens, 16\]"):
        run(without, picture())
    with pytest.raises(ValueError, match="prompt_embeds must be"):
        run(tiny_sd, picture(), prompt_embeds=torch.zeros(1, 4, 17))
    config = {key: value for key, value in tiny_sd.vae.config.items() if not key.startswith("_")}
    plain = CTSRPipeline(AutoencoderKL(**config), osediff.unet, osediff.prompt_embeddings, family="osediff")
    assert run(plain, picture(4, 4)).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="leave it None"):
        run(plain, picture(), timestep=3)
    with pytest.raises(ValueError, match="pass unet_variant"):
        CTSRPipeline(tiny_sd.vae, tiny_sd.unet, family="pisa")
    with pytest.raises(ValueError, match="Unknown family"):
        CTSRPipeline(tiny_sd.vae, tiny_sd.unet, family="new")
    with pytest.raises(ValueError, match="belongs to the family"):
        run(CTSRPipeline(tiny_sd.vae, osediff.unet, tiny_sd.prompt_embeddings), picture(4, 4))


def test_two_timesteps(osediff):
    tadsr = CTSRPipeline(osediff.vae, osediff.unet, osediff.prompt_embeddings, family="tadsr")
    assert (run(tadsr, picture(), t=0) - run(tadsr, picture(), t=1)).abs().max() > 1e-4
    one = run(tadsr, picture(), timestep=100)
    assert torch.equal(one, run(tadsr, picture(), timestep=100, t=1))
    assert (one - run(tadsr, picture(), timestep=500, t=1)).abs().max() > 1e-4


# --------------------------------------------------------------------------------------- callback and cancel


def test_callback_counts_the_tiles_of_every_stage(pipeline):
    calls: list[tuple[str, int, int]] = []
    run(pipeline, picture(64, 40), tile=128, tile_overlap=64, callback=lambda *call: calls.append(call))
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == ["encode", "unet", "decode"]
    for stage in ("encode", "unet", "decode"):
        counts = [(done, total) for name, done, total in calls if name == stage]
        assert counts == [(i + 1, counts[0][1]) for i in range(counts[0][1])]
        assert len(counts) >= 4


@pytest.mark.parametrize("tile", [0, 384])
def test_a_large_tile_on_a_cpu_reports_its_layers(pipeline, tile):
    """Else a tile would be seconds without a move of the progress bar, and without a chance to cancel."""
    calls: list[tuple[str, float, int]] = []
    x, options = picture(100, 160), {"tile": tile, "tile_overlap": 128}
    out = run(pipeline, x, **options, callback=lambda *call: calls.append(call))
    assert torch.equal(out, run(pipeline, x, **options))
    for stage in ("encode", "unet", "decode"):
        counts = [(done, total) for name, done, total in calls if name == stage]
        (total,) = {total for _, total in counts}
        assert [done for done, _ in counts] == sorted({done for done, _ in counts})
        assert counts[-1] == (total, total)
        if tile == 0 or (pipeline.vae_scale_factor == 8 and stage == "unet"):
            assert len(counts) >= 4 * total  # layers of these tiny networks
    assert not any(module._forward_hooks for part in (pipeline.vae, pipeline.unet) for module in part.modules())

    def cancel(stage: str, done: float, total: int) -> None:
        if stage == "unet" and 0 < done < 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(pipeline, x, **options, callback=cancel)
    assert not any(module._forward_hooks for module in pipeline.unet.modules())
    assert torch.equal(run(pipeline, x, **options), out)


@pytest.mark.parametrize("stage", ["encode", "unet", "decode"])
def test_cancel(pipeline, stage):
    before = run(pipeline, picture(40, 40), tile=128)

    def cancel(name: str, done: int, total: int) -> None:
        if name == stage and done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(pipeline, picture(40, 40), tile=128, callback=cancel)
    assert torch.equal(run(pipeline, picture(40, 40), tile=128), before)


# ---------------------------------------------------------------------------------------------- determinism


def test_neither_batch_place_nor_history_changes_a_bit(pipeline):
    x, others = picture(), picture(batch=3, seed=1)
    alone = run(pipeline, x)
    assert torch.equal(run(pipeline, torch.cat([others, x]))[3:], alone)
    assert torch.equal(run(pipeline, torch.cat([others, x]).contiguous(memory_format=torch.channels_last))[3:], alone)
    run(pipeline, picture(40, 23, seed=2), tile=128)
    torch.manual_seed(7)
    assert torch.equal(run(pipeline, x), alone)


def test_the_steps_take_several_pictures_one_at_a_time(pipeline):
    """So neither a bit nor the memory depends on how many there are."""
    x = picture(batch=3)
    together = pipeline.encode(x, 68, 88).latents
    ends = pipeline.endpoints(together)
    pictures = pipeline.decode(ends.z0, (68, 88))
    for index in range(3):
        own = pipeline.encode(x[index : index + 1], 68, 88).latents
        assert torch.equal(own[0], together[0][index : index + 1])
        end = pipeline.endpoints(own).z0
        assert torch.equal(end, ends.z0[index : index + 1])
        assert torch.equal(pipeline.decode(end, (68, 88)), pictures[index : index + 1])


def test_noise_depends_on_the_seed_not_on_the_batch_place(tiny_mini, monkeypatch):
    noisy = replace(tiny_mini.family, sigma=0.3)
    monkeypatch.setattr(CTSRPipeline, "family", noisy)
    pipeline, x = tiny_mini, picture()
    alone = run(pipeline, x, generator=torch.Generator().manual_seed(3))
    both = run(pipeline, torch.cat([picture(seed=1), x]), generator=torch.Generator().manual_seed(3))
    assert torch.equal(both[1:], alone)
    assert not torch.equal(run(pipeline, x, generator=torch.Generator().manual_seed(4)), alone)


@pytest.mark.parametrize(("height", "width"), [(68, 88), (9, 11)])
def test_resize_gives_the_same_bits_whatever_the_strides(height, width):
    x = picture(batch=2)
    wide = torch.zeros(2, 3, 17, 40)
    wide[..., 5:27] = x
    laid_out = {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "a host's IMAGE": x.movedim(1, -1).contiguous().movedim(-1, 1),
        "rows and columns swapped": x.mT.contiguous().mT,
        "a window": wide[..., 5:27],
    }
    expected = tensors.resize(x, height, width)
    for layout, same in laid_out.items():
        assert same.stride() != x.stride()
        resized = tensors.resize(same, height, width)
        assert torch.equal(resized, expected), layout
        assert resized.stride() == expected.stride(), layout  # else what sums over it rounds in another order


@pytest.mark.parametrize("make", ["make_mini", "make_sd"])
def test_half_precision_is_deterministic_and_close(make, request):
    pipeline = request.getfixturevalue(make)()
    exact = run(pipeline, picture())
    pipeline.to("cpu", torch.bfloat16)
    first = run(pipeline, picture())
    assert first.dtype == torch.float32
    assert torch.equal(run(pipeline, torch.cat([picture(seed=1), picture()]))[1:], first)
    assert (first - exact).abs().mean() < 0.05


# --------------------------------------------------------------------------------------------------- tiling


def test_mini_tiled_equals_untiled(tiny_mini):
    x = picture(67, 95)
    whole, latent = run(tiny_mini, x), run(tiny_mini, x, output_type="latent")
    for tile in (128, 200):
        assert (run(tiny_mini, x, output_type="latent", tile=tile) - latent).abs().max() < 1e-4
        assert (run(tiny_mini, x, tile=tile) - whole).abs().max() <= 1e-4  # fp32 rounding; 1/255 is 4e-3


def smooth(height: int, width: int) -> Tensor:
    """A picture whose left is dark and even, whose right is bright and busy: tiles of it have other statistics."""
    ramp = torch.linspace(0, 1, width).expand(height, width)
    waves = 0.15 * ramp * torch.sin(torch.arange(width) / 3)
    return (0.1 + 0.7 * ramp + waves).expand(1, 3, height, width)


def seam(error: Tensor, borders: list[int], pitch: int) -> float:
    """Gradient energy of `error` across the borders, over that across all other columns of the same place in a cell."""
    energy = error.diff(dim=-1).square().mean(dim=(0, 1, 2))  # of the step from column i to i + 1
    others = [column for column in range(pitch, error.shape[-1], pitch) if column not in borders]
    return float(energy[[c - 1 for c in borders]].mean() / energy[[c - 1 for c in others]].mean())


@torch.no_grad()
def test_sd_shaped_tiles_have_no_seam_and_the_test_would_see_one(tiny_sd):
    latents = tiny_sd.encode(smooth(64, 512), 64, 512).latents[0]
    unet = networks.unet(tiny_sd.unet, 8, 999, tiny_sd.prompt_embeddings(1))
    for network, x in ((unet, latents), (networks.decoder(tiny_sd.vae), latents / tiny_sd.scaling_factor)):
        scale, tile, overlap = network.write_scale, 16, 8
        whole = network.call(x)
        tiled = run_tiled(network, x, tile, overlap, None)
        cut = torch.cat([network.call(part) for part in x.split(tile, dim=-1)], dim=-1)
        edges = list(range(overlap * scale, 64 * scale, overlap * scale))  # a tile starts or ends in every one
        assert seam(tiled - whole, edges, scale) < 1.1
        assert seam(cut - whole, edges[1::2], scale) > 1.5


# ------------------------------------------------------------------------------------ overflow and memory


@pytest.fixture
def overflowing(make_mini) -> CTSRPipeline:
    """In fp16, with a decoder whose inside exceeds 65504 and whose outside does not."""
    pipeline = make_mini()
    decoder = pipeline.vae.decoder
    with torch.no_grad():
        decoder.up_2.weight *= 1e4
        decoder.conv_out.weight /= 1e4
    for module in (pipeline.vae, pipeline.unet):
        torch.nn.Module.to(module, torch.float16)
    return pipeline


def test_overflow_runs_again_in_fp32(overflowing, caplog):
    weights = {key: value.clone() for key, value in overflowing.vae.state_dict().items()}
    z = overflowing.encode(picture(), 68, 88).latents[0] * 30
    with torch.no_grad():
        assert not networks.decoder(overflowing.vae).call(z).isfinite().all()
    calls: list[str] = []
    with caplog.at_level(logging.WARNING):
        out = overflowing.decode(z, callback=lambda stage, done, total: calls.append(stage))
    assert out.isfinite().all()
    assert "decode step overflowed in torch.float16" in caplog.text
    assert calls == ["decode", "decode"]
    for key, value in overflowing.vae.state_dict().items():
        assert value.dtype == torch.float16
        assert torch.equal(value, weights[key])
    assert torch.equal(overflowing.decode(z), out)


def test_weights_that_are_broken_even_in_fp32(make_mini):
    pipeline = make_mini()
    with torch.no_grad():
        pipeline.unet.conv_in.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="unet step gives NaN"):
        run(pipeline, picture(4, 4))


class Starved(torch.nn.Module):
    """A decoder that finds no memory for more than so many latents."""

    def __init__(self, decoder: torch.nn.Module, limit: int):
        super().__init__()
        self.decoder, self.limit = decoder, limit

    @property
    def halo(self) -> int:
        return self.decoder.halo

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[-1] * z.shape[-2] > self.limit:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.decoder(z)


@pytest.mark.parametrize("limit", [40**2, 0])
def test_out_of_memory_takes_smaller_tiles_and_says_so(make_mini, limit, caplog):
    pipeline = make_mini()
    x = picture(100, 100)
    whole = run(pipeline, x)
    pipeline.vae.decoder = Starved(pipeline.vae.decoder, limit)
    if not limit:
        with pytest.raises(TileMemoryError, match="smaller scale"):
            run(pipeline, x)
        return
    with caplog.at_level(logging.WARNING):
        out = run(pipeline, x)
    assert "trying again with tiles of" in caplog.text
    assert (out - whole).abs().max() <= 1e-5


def test_a_host_frees_memory_before_every_further_try(make_mini):
    pipeline = make_mini()
    freed: list[str] = []
    pipeline.free_memory = lambda: freed.append("freed")
    run(pipeline, picture(20, 20))
    assert not freed
    pipeline.vae.decoder = Starved(pipeline.vae.decoder, 0)
    with pytest.raises(TileMemoryError):
        run(pipeline, picture(20, 20))  # 80 pixels: untiled and no step of the ladder below
    assert not freed
    with pytest.raises(TileMemoryError):
        run(pipeline, picture(100, 100))  # untiled, 48 and 32 cells
    assert freed == ["freed"] * 2
