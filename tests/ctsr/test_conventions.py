"""What users of diffusers expect of any pipeline: callbacks, prompts, several images, shared networks, offloading."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.callbacks import PipelineCallback
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from ctsr import CheckpointError, CTSRPipeline

CPU = torch.device("cpu")


def picture(height: int = 9, width: int = 13, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def result(pipeline: CTSRPipeline, image: Tensor | None = None, **options: object) -> Tensor:
    image = picture() if image is None else image
    return pipeline(image, **{"t": 0.3, "output_type": "pt", **options}).images


# ------------------------------------------------------------------------------------------ callback_on_step_end


def test_a_callback_sees_the_latents_of_every_picture(tiny_sd):
    seen: list[tuple[int, int, list[str]]] = []

    def look(pipeline: CTSRPipeline, step: int, timestep: int, tensors: dict[str, Tensor]) -> None:
        assert pipeline is tiny_sd
        seen.append((step, timestep, list(tensors)))

    out = result(tiny_sd, picture(batch=2), callback_on_step_end=look)
    assert seen == [(0, tiny_sd.family.timesteps[0], ["latents"])] * 2
    assert tiny_sd.num_timesteps == 1
    assert torch.equal(out, result(tiny_sd, picture(batch=2)))


def test_latents_that_a_callback_returns_are_decoded(tiny_mini):
    zeros = result(
        tiny_mini, callback_on_step_end=lambda *a: {"latents": torch.zeros_like(a[3]["latents"])}, output_type="latent"
    )
    assert not zeros.any()
    darker = result(tiny_mini, callback_on_step_end=lambda *a: {"latents": a[3]["latents"] * 0.5}, color_fix="none")
    assert not torch.equal(darker, result(tiny_mini, color_fix="none"))
    latent = result(tiny_mini, output_type="latent")
    assert torch.equal(darker, tiny_mini.decode(latent * 0.5, (36, 52)))


class Recorder(PipelineCallback):
    """diffusers' own kind, which says itself what it wants."""

    @property
    def tensor_inputs(self) -> list[str]:
        return ["latents"]

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        callback_kwargs["latents"] = -callback_kwargs["latents"]
        return callback_kwargs


def test_callbacks_of_diffusers_own_kind(tiny_mini):
    turned = result(
        tiny_mini, callback_on_step_end=Recorder(cutoff_step_ratio=None, cutoff_step_index=0), output_type="latent"
    )
    assert torch.equal(turned, -result(tiny_mini, output_type="latent"))


def test_tensors_that_a_callback_cannot_have(tiny_mini):
    names: list[list[str]] = []
    result(tiny_mini, callback_on_step_end=lambda *a: names.append(list(a[3])), callback_on_step_end_tensor_inputs=[])
    assert names == [[]]
    with pytest.raises(ValueError, match="may hold latents, not 'prompt_embeds'"):
        result(tiny_mini, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_cancels(tiny_mini):
    def cancel(*_given: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        result(tiny_mini, callback_on_step_end=cancel)


# --------------------------------------------------------------------------------------------- num_images_per_prompt


@pytest.fixture
def noisy(tiny_mini: CTSRPipeline, monkeypatch: pytest.MonkeyPatch) -> CTSRPipeline:
    """A family that starts from noise."""
    monkeypatch.setattr(CTSRPipeline, "family", replace(tiny_mini.family, sigma=0.3))
    return tiny_mini


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def test_several_images_a_picture(tiny_mini, noisy):
    pair = picture(batch=2)
    out = result(noisy, pair, num_images_per_prompt=2, generator=seed(1))
    assert len(out) == 4
    assert not torch.equal(out[0], out[1])
    for index in range(2):  # wherever a picture stands, its images are the same
        alone = result(noisy, pair[index : index + 1], num_images_per_prompt=2, generator=seed(1))
        assert torch.equal(alone, out[2 * index : 2 * index + 2])
    assert torch.equal(result(noisy, pair, generator=seed(1)), out[::2])
    pictures = noisy(pair, num_images_per_prompt=2, generator=seed(1), output_type="pil").images
    assert [type(one) for one in pictures] == [Image.Image] * 4


def test_images_without_noise_are_the_same(tiny_mini):
    out = result(tiny_mini, num_images_per_prompt=2)
    assert torch.equal(out, result(tiny_mini).expand_as(out))


def test_a_generator_for_every_result(noisy):
    pair = picture(batch=2)
    out = result(noisy, pair, generator=[seed(1), seed(2)])
    for index in range(2):
        assert torch.equal(result(noisy, pair[index : index + 1], generator=seed(index + 1)), out[index : index + 1])
    with pytest.raises(ValueError, match="one a result: got 2 for 4"):
        result(noisy, pair, generator=[seed(1), seed(2)], num_images_per_prompt=2)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        result(noisy, num_images_per_prompt=0, generator=seed(1))
    with pytest.raises(ValueError, match=r"starts from noise: pass generator=torch\.Generator"):
        result(noisy)


# ------------------------------------------------------------------------------------------------------------ prompt


@pytest.fixture
def spoken(make_sd: Callable[..., CTSRPipeline], text_encoder_folder: Path) -> CTSRPipeline:
    """An SD-shaped pipeline with a tiny text encoder."""
    transformers = pytest.importorskip("transformers")
    pipeline = make_sd()
    encoder = transformers.CLIPTextModel.from_pretrained(text_encoder_folder / "text_encoder").eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(text_encoder_folder / "tokenizer")
    parts = {**pipeline.components, "text_encoder": encoder, "tokenizer": tokenizer}
    return CTSRPipeline(**parts, encoder_timesteps=[500])


def test_a_prompt_in_words(spoken):
    embeds = spoken.encode_prompt("cat")
    assert embeds.shape == (1, 77, 16)
    by_text = result(spoken, prompt="cat")
    assert torch.equal(by_text, result(spoken, prompt_embeds=embeds))
    assert torch.equal(by_text, result(spoken, prompt_embeds=embeds[0]))
    assert not torch.equal(by_text, result(spoken))
    pair = result(spoken, torch.cat([picture()] * 2), prompt=["cat", "a b c"])
    assert torch.equal(pair[:1], by_text)
    assert torch.equal(pair[1:], result(spoken, prompt="a b c"))
    assert not torch.equal(pair[:1], pair[1:])
    assert torch.equal(spoken.encode_prompt(["cat", "b"], CPU, 2)[1], embeds[0])


def test_prompts_that_cannot_be(spoken, tiny_sd, tiny_mini, caplog):
    embeds = tiny_sd.prompt_embeddings(1)
    cases = [
        (spoken, {"prompt": "cat", "prompt_embeds": embeds}, "both given"),
        (spoken, {"prompt": ["a", "b"]}, "one text, or one a picture: got 2 for 1"),
        (spoken, {"prompt": [3]}, "one text, or one a picture"),
        (tiny_sd, {"prompt": "cat"}, "needs a text encoder: load the pipeline with"),
        (tiny_mini, {"prompt": "cat"}, "takes no prompt"),
        (tiny_mini, {"prompt_embeds": embeds}, "takes no prompt"),
    ]
    for pipeline, options, message in cases:
        with pytest.raises(ValueError, match=message):
            result(pipeline, **options)
    with caplog.at_level(logging.WARNING, logger="ctsr"):
        spoken.encode_prompt("a " * 90)
    assert "cut off: it has 92 tokens, of 77 that fit" in caplog.text


def test_prompts_are_encoded_without_the_other_networks(spoken):
    alone = CTSRPipeline(None, None, text_encoder=spoken.text_encoder, tokenizer=spoken.tokenizer)
    assert torch.equal(alone.encode_prompt("cat"), spoken.encode_prompt("cat"))


def test_a_folder_keeps_the_text_encoder_and_a_file_says_that_it_does_not(spoken, tmp_path, caplog):
    expected = result(spoken, prompt="cat")
    spoken.save_pretrained(tmp_path / "folder")
    loaded = CTSRPipeline.from_pretrained(tmp_path / "folder")
    assert torch.equal(result(loaded, prompt="cat"), expected)
    half = CTSRPipeline.from_pretrained(tmp_path / "folder", dtype=torch.bfloat16)
    assert half.text_encoder.dtype == torch.bfloat16
    without = CTSRPipeline.from_pretrained(tmp_path / "folder", text_encoder=None, tokenizer=None)
    assert (without.text_encoder, without.tokenizer) == (None, None)
    assert torch.equal(result(without), result(spoken))
    spoken.save_single_file(tmp_path / "file.safetensors")
    assert "text encoder is left out" in caplog.text
    assert torch.equal(result(CTSRPipeline.from_single_file(tmp_path / "file.safetensors")), result(spoken))
    index = tmp_path / "folder" / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("CLIPTextModel", "FutureText"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is a FutureText, which cannot be loaded: use one of CLIPTextModel"):
        CTSRPipeline.from_pretrained(tmp_path / "folder")


def test_optional_parts_that_are_none_stay_none(tiny_mini, tmp_path):
    tiny_mini.save_pretrained(tmp_path)
    loaded = CTSRPipeline.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in loaded._optional_components} == dict.fromkeys(
        ("prompt_embeddings", "unet_variant", "text_encoder", "tokenizer")
    )


# --------------------------------------------------------------------------------------------------------- from_pipe


def test_from_pipe_shares_the_networks_and_keeps_their_dtype(make_mini):
    pipeline = make_mini()
    nn.Module.to(pipeline.unet, torch.bfloat16)
    expected = result(pipeline)
    other = CTSRPipeline.from_pipe(pipeline, color_fix="adain")
    assert (other.unet, other.vae) == (pipeline.unet, pipeline.vae)
    assert (other.unet.dtype, other.vae.dtype) == (torch.bfloat16, torch.float32)
    assert other.family == pipeline.family
    assert other.config["color_fix"] == "adain"
    assert torch.equal(result(other, color_fix="wavelet"), expected)
    assert torch.equal(result(pipeline), expected)
    for spelling in ("dtype", "torch_dtype"):
        assert CTSRPipeline.from_pipe(make_mini(), **{spelling: torch.bfloat16}).unet.dtype == torch.bfloat16


def test_from_a_pipe_of_stable_diffusion(make_sd, text_encoder_folder):
    transformers = pytest.importorskip("transformers")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    osediff = make_sd("osediff")
    shape = {key: value for key, value in osediff.vae.config.items() if not key.startswith("_")}
    theirs = StableDiffusionPipeline(
        vae=AutoencoderKL(**shape).eval(),
        text_encoder=transformers.CLIPTextModel.from_pretrained(text_encoder_folder / "text_encoder").eval(),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(text_encoder_folder / "tokenizer"),
        unet=osediff.unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    ours = CTSRPipeline.from_pipe(theirs, family="osediff", prompt_embeddings=osediff.prompt_embeddings)
    assert (ours.unet, ours.vae, ours.text_encoder) == (theirs.unet, theirs.vae, theirs.text_encoder)
    direct = CTSRPipeline(theirs.vae, theirs.unet, osediff.prompt_embeddings, family="osediff")
    assert torch.equal(result(ours), result(direct))
    assert not torch.equal(result(ours, prompt="cat"), result(ours))


# -------------------------------------------------------------------------------------------------------- offloading


def test_each_step_alone_under_offload_and_one_network_at_a_time_on_the_device(make_mini):
    """On a CPU nothing moves; what is told to leave the device is seen all the same."""
    pytest.importorskip("accelerate")
    pipeline, plain = make_mini(), make_mini()
    encoded = plain.encode(picture(), 36, 52)
    ends = plain.endpoints(encoded.latents)
    pipeline.enable_model_cpu_offload(device="cpu")
    left: list[str] = []
    names = {id(pipeline.vae): "vae", id(pipeline.unet): "unet"}
    for hook in pipeline._all_hooks:
        own = hook.offload
        hook.offload = lambda hook=hook, own=own: (left.append(names[id(hook.model)]), own())

    def leaving() -> list[str]:
        seen = list(left)
        left.clear()
        return seen

    assert torch.equal(pipeline.encode(picture(), 36, 52).latents[0], encoded.latents[0])
    assert leaving()[:1] == ["unet"]
    assert torch.equal(pipeline.endpoints(encoded.latents).z0, ends.z0)
    assert leaving()[:1] == ["vae"]
    assert torch.equal(pipeline.decode(ends.z0), plain.decode(ends.z0))
    assert leaving()[:1] == ["unet"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offloaded_networks_take_turns_on_a_gpu(make_sd):
    pipeline = make_sd()
    pipeline.enable_model_cpu_offload()
    encoded = pipeline.encode(picture(), 36, 52)
    assert (pipeline.vae.device.type, pipeline.unet.device.type) == ("cuda", "cpu")
    ends = pipeline.endpoints(encoded.latents)
    assert (pipeline.vae.device.type, pipeline.unet.device.type) == ("cpu", "cuda")
    pipeline.decode(ends.z0)
    assert (pipeline.vae.device.type, pipeline.unet.device.type) == ("cuda", "cpu")
    pipeline.maybe_free_model_hooks()
    assert (pipeline.vae.device.type, pipeline.unet.device.type) == ("cpu", "cpu")


def test_the_text_encoder_is_offloaded_too(spoken):
    pytest.importorskip("accelerate")
    expected = result(spoken, prompt="cat")
    spoken.enable_model_cpu_offload(device="cpu")
    assert torch.equal(result(spoken, prompt="cat"), expected)


def test_weights_stored_in_eight_bits(make_sd):
    pipeline = make_sd()
    exact = result(pipeline)
    if not hasattr(pipeline.unet, "enable_layerwise_casting"):
        pytest.skip("this release of diffusers has no layerwise casting")
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert pipeline.unet.mid_block.resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
    assert 0 < (result(pipeline) - exact).abs().mean() < 0.05
