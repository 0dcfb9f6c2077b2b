"""Published checkpoints through `ctsr convert`: the file that comes out gives what adapters on the base would give."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner, Result

from ctsr import CheckpointError, CTSRPipeline, PromptEmbeddings
from ctsr.app.cli import app
from ctsr.checkpoints.formats import PUBLISHED, find
from ctsr.checkpoints.inspect import read
from ctsr.convert.convert import Options, convert, open_base
from ctsr.convert.prompts import encode_prompts
from ctsr.families import Endpoints
from ctsr.load import load_pipeline
from tests.checkpoints import WRITERS, direct_ends, save_folder, save_single_file

pytest.importorskip("transformers")

Networks = tuple[UNet2DConditionModel, AutoencoderKL]
PROMPTS = {"osediff": ", ,", "tadsr": ", ,", "pisa": ""}
X = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
IN_FP32 = Options(dtype=torch.float32)


def picture(height: int = 9, width: int = 13) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def ends(pipeline: CTSRPipeline) -> list[Tensor]:
    """Both ends of the dial."""
    found: Endpoints = pipeline.endpoints(pipeline.encode(X, *X.shape[2:]).latents)
    return [found.z0, pipeline.blend(found, 1.0)]


def picture_of(pipeline: CTSRPipeline, x: Tensor, **options: Any) -> Any:
    """[1, 3, H, W] in [0, 1]."""
    return pipeline(x, output_type="pt", **options).images


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest relative error of any of them."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


@pytest.fixture
def checkpoint(sd21: Networks, tmp_path: Path) -> Callable[[str], Path]:
    """`checkpoint("tadsr")` writes that method's file."""

    def write(name: str) -> Path:
        path = tmp_path / "a name that says nothing.bin"
        torch.save(WRITERS[name](*sd21), path)
        return path

    return write


def converted(path: Path, base: Path, options: Options = IN_FP32) -> tuple[Path, dict[str, str]]:
    """The file that `convert` makes, and what it tells."""
    out, told = path.parent / "new" / "out.safetensors", dict[str, str]()
    convert(path, base, out, options, told.__setitem__)
    return out, told


def copies(sd21: Networks) -> Networks:
    unet, vae = (type(model).from_config(model.config) for model in sd21)
    for new, old in zip((unet, vae), sd21, strict=True):
        new.load_state_dict(old.state_dict())
    return unet.eval(), vae.eval()


@pytest.mark.parametrize("keep_lora", [False, True])
@pytest.mark.parametrize("name", WRITERS)
@torch.no_grad()
def test_round_trip(name, keep_lora, checkpoint, sd21, sd21_folder):
    path = checkpoint(name)
    form = find(read(path), PUBLISHED)
    assert form is not None
    assert name.removesuffix("a").lower() in form.what.lower().replace("-", "")
    out, _ = converted(path, sd21_folder, Options(dtype=torch.float32, keep_lora=keep_lora))
    pipeline = load_pipeline(out, torch.float32)
    assert pipeline.family.name == name
    pytest.importorskip("peft")
    data = WRITERS[name](*sd21)
    embeds = encode_prompts(sd21_folder, [PROMPTS[name]])
    expected = direct_ends(name, data, *copies(sd21), embeds, X)
    assert difference(ends(pipeline), expected) < (1e-6 if keep_lora and name != "pisa" else 1e-4)
    plain = CTSRPipeline(sd21[1], sd21[0], PromptEmbeddings.from_embeds(embeds), family="osediff")
    assert difference(ends(plain), expected) > 0.05  # the adapters do something


@torch.no_grad()
def test_kept_lora_is_folded_by_a_second_conversion(checkpoint, sd21_folder, tmp_path):
    kept, _ = converted(checkpoint("pisa"), sd21_folder, Options(dtype=torch.float32, keep_lora=True))
    pipeline, out = load_pipeline(kept, torch.float32), tmp_path / "merged.safetensors"
    convert(kept, None, out, Options(dtype=torch.float32), lambda name, value: None)
    merged = load_pipeline(out, torch.float32)
    with safe_open(out, framework="pt") as file:
        assert not [key for key in file.keys() if key.startswith("unet.") and "lora" in key]  # noqa: SIM118
    assert difference(ends(merged), ends(pipeline)) < 1e-4
    assert merged.config["about"] == pipeline.config["about"]


def test_what_is_told_and_kept(checkpoint, sd21_folder):
    path = checkpoint("tadsr")
    out, told = converted(path, sd21_folder, Options(prompt="a cat"))
    about = {
        "source": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "base": "stable-diffusion-2-1-base",
        "prompt": "a cat",
        "licence": "TADSR: Pi-Lab License, non-commercial use only; "
        "Stable Diffusion 2.1-base: CreativeML Open RAIL++-M",
    }
    assert about.items() <= told.items()
    assert told["format"] == "a TADSR checkpoint"
    pipeline = load_pipeline(out, torch.float32)
    assert pipeline.config["about"] == about
    assert pipeline.config["encoder_timesteps"] == [500, 200]
    assert pipeline.config["parameterization"] == "scaled_residual"
    assert (pipeline.prompt_embeddings.embeds - encode_prompts(sd21_folder, ["a cat"])).abs().max() < 1e-2  # fp16
    with safe_open(out, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
        assert str(path.parent) not in json.dumps(file.metadata())
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]


def test_a_folder_keeps_variant_and_licence(checkpoint, sd21_folder, tmp_path):
    out, _ = converted(checkpoint("pisa"), sd21_folder)
    pipeline = load_pipeline(out, torch.float32)
    folder = tmp_path / "folder"
    pipeline.save_pretrained(folder)
    for loaded in (load_pipeline(folder, torch.float32), CTSRPipeline.from_pretrained(folder)):
        assert loaded.config["about"] == pipeline.config["about"]
        for one, other in zip(ends(loaded), ends(pipeline), strict=True):
            assert torch.equal(one, other)


@torch.no_grad()
def test_the_unet_is_pix_again_after_every_pass(checkpoint, sd21_folder, monkeypatch):
    """Also without peft: the nodes do without it."""
    out, _ = converted(checkpoint("pisa"), sd21_folder)
    pipeline = load_pipeline(out, torch.float32)
    monkeypatch.setitem(sys.modules, "peft", None)
    before = {key: x.clone() for key, x in pipeline.unet.state_dict().items()}
    first, tiled = ends(pipeline), picture_of(pipeline, picture(40, 40), tile=128)
    assert tiled.shape == (1, 3, 160, 160)
    assert all(torch.equal(x, before[key]) for key, x in pipeline.unet.state_dict().items())
    assert not any(module._forward_hooks for module in pipeline.unet.modules())
    assert all(torch.equal(a, b) for a, b in zip(ends(pipeline), first, strict=True))

    def cancel(*_: object) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline(picture(), callback=cancel)
    assert not any(module._forward_hooks for module in pipeline.unet.modules())


def test_half_precision_of_both_variants(checkpoint, sd21_folder):
    out, _ = converted(checkpoint("pisa"), sd21_folder)
    exact, rounded = (ends(load_pipeline(out, dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert 1e-5 < difference(rounded, exact) < 0.15


def test_tadsr_in_tiles_and_at_one_timestep(checkpoint, sd21_folder):
    """The released code crashes in tiles."""
    out, _ = converted(checkpoint("tadsr"), sd21_folder)
    pipeline = load_pipeline(out, torch.float32)
    whole, tiled = (picture_of(pipeline, picture(40, 36), t=0.5, tile=tile) for tile in (0, 128))
    assert tiled.shape == whole.shape == (1, 3, 160, 144)
    assert (tiled - whole).abs().mean() < 0.1
    one = pipeline.endpoints(pipeline.encode(X, 32, 48, timestep=500).latents, timestep=500)
    assert one.delta is None
    assert torch.equal(one.z0, ends(pipeline)[0])


# ---------------------------------------------------------------------------------------------------------------- base


@pytest.fixture(scope="module")
def text_folder(text_encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny text encoder with Stable Diffusion 2.x's activation and heads of 64."""
    import transformers

    encoder = transformers.CLIPTextModel.from_pretrained(
        text_encoder_folder / "text_encoder", hidden_act="gelu", num_attention_heads=1
    )
    folder = tmp_path_factory.mktemp("text")
    encoder.save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").symlink_to(text_encoder_folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def base_file(sd21: Networks, text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as a single file of the original repository's names."""
    import transformers

    encoder = transformers.CLIPTextModel.from_pretrained(text_folder / "text_encoder")
    return save_single_file(tmp_path_factory.mktemp("file") / "v2-1_512.safetensors", *sd21, encoder)


def test_a_single_file_is_the_same_base(base_file, text_folder, sd21):
    base = open_base(Path("checkpoint"), base_file)
    for loaded, own in zip((base.unet(), base.vae()), sd21, strict=True):
        state = loaded.state_dict()
        assert set(state) == set(own.state_dict())
        assert all(torch.equal(x, state[key]) for key, x in own.state_dict().items())
        keys = [key for key in own.config if key != "sample_size" and not key.startswith("_")]
        assert {k: loaded.config[k] for k in keys} == {k: own.config[k] for k in keys}
    for prompt in ("", ", ,", ". ;"):
        torch.testing.assert_close(base.encode(prompt), encode_prompts(text_folder, [prompt]), rtol=1e-4, atol=1e-5)


def test_a_pickled_base_and_words_without_a_tokenizer(base_file, checkpoint, tmp_path):
    pickled = tmp_path / "v2-1_512.ckpt"
    torch.save({"state_dict": load_file(base_file), "global_step": 220000}, pickled)
    results = [
        ends(load_pipeline(converted(checkpoint("osediff"), base)[0], torch.float32)) for base in (base_file, pickled)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    with pytest.raises(CheckpointError, match="brings no tokenizer: leave the prompt empty"):
        converted(checkpoint("osediff"), base_file, Options(prompt="a cat"))


# -------------------------------------------------------------------------------------------------------- command line


def ctsr(*arguments: object) -> Result:
    """Runs the command in this process; no traceback may come out."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_convert_then_info(checkpoint, sd21_folder, tmp_path):
    out = tmp_path / "tadsr.safetensors"
    result = ctsr("convert", checkpoint("tadsr"), "--base", sd21_folder, "-o", out, "--precision", "fp32")
    assert (result.exit_code, result.stdout) == (0, "")
    lines = dict(line.split(": ", 1) for line in result.stderr.splitlines() if ": " in line)
    unet = sum(p.numel() for p in load_pipeline(out, torch.float32).unet.parameters())
    assert lines["format"] == "a TADSR checkpoint"
    assert lines["time layers"] == "16 tensors"  # 24 with two resnets a level
    assert lines["unet"] == f"{unet:,} parameters"
    assert "non-commercial" in lines["licence"]
    assert lines["written"].startswith(f"{out} (")
    shown = ctsr("info", out, "--precision", "fp32").stdout
    for name in ("source", "sha256", "base", "prompt", "licence"):
        assert f"\n{name} " in shown
    assert "non-commercial" in shown
    assert "500, 200" in shown


def test_a_pickle_is_not_run_but_explained(checkpoint, tmp_path):
    path = checkpoint("osediff")
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    for command in (["upscale", tmp_path / "x.png", "--model", path], ["info", path]):
        result = ctsr(*command)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert f"convert it first, with `ctsr convert '{path}' --base" in line
    with pytest.raises(CheckpointError, match="convert it first"):
        CTSRPipeline.from_single_file(path)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no base", "holds adapters alone: name a Stable Diffusion 2.1-base with --base"),
        ("base is the checkpoint", "is an OSEDiff checkpoint: name a folder or file of Stable Diffusion 2.1-base"),
        ("base is nothing", "is not Stable Diffusion 2.x"),
        ("checkpoint is the base", "is a Stable Diffusion folder: name it with --base"),
        ("suffix", "must end in .safetensors"),
        ("output is an input", "is an input"),
        ("base of a model of ours", "is complete: leave --base and --prompt out"),
        ("missing", "does not exist"),
    ],
)
def test_arguments_that_cannot_be(case, message, checkpoint, sd21_folder, tiny_mini_file, tmp_path):
    path, out, empty = checkpoint("osediff"), tmp_path / "out.safetensors", tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "in.safetensors").write_bytes(tiny_mini_file.read_bytes())
    arguments: dict[str, list[Any]] = {
        "no base": [path, "-o", out],
        "base is the checkpoint": [path, "--base", path, "-o", out],
        "base is nothing": [path, "--base", empty, "-o", out],
        "checkpoint is the base": [sd21_folder, "--base", sd21_folder, "-o", out],
        "suffix": [path, "--base", sd21_folder, "-o", tmp_path / "out.pkl"],
        "output is an input": [tmp_path / "in.safetensors", "-o", tmp_path / "in.safetensors"],
        "base of a model of ours": [tmp_path / "in.safetensors", "--base", sd21_folder, "-o", out],
        "missing": [tmp_path / "nothing.pkl", "--base", sd21_folder, "-o", out],
    }
    before = sorted(tmp_path.rglob("*"))
    result = ctsr("convert", *arguments[case])
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_base_of_another_shape(checkpoint, sd21, text_encoder_folder, tmp_path):
    wider = UNet2DConditionModel(**{**sd21[0].config, "cross_attention_dim": 24})
    base = save_folder(tmp_path / "sd1", wider, sd21[1], text_encoder_folder)
    for name in ("osediff", "pisa"):
        with pytest.raises(CheckpointError, match=r"sd1 is not the base of this checkpoint: it changes .*attn2.* give"):
            converted(checkpoint(name), base)
    assert not (tmp_path / "new").exists()


def test_the_sibling_that_predicts_v(checkpoint, sd21_folder, tmp_path):
    base = tmp_path / "v"
    shutil.copytree(sd21_folder, base)
    (base / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    with pytest.raises(CheckpointError, match=r"is of v_prediction: give Stable Diffusion 2\.1-base"):
        converted(checkpoint("osediff"), base)


def test_a_base_of_halves(checkpoint, sd21_folder, sd21, text_encoder_folder, tmp_path):
    """Only the files of half precision, as `variant="fp16"` has them."""
    base = tmp_path / "halves"
    base.mkdir()
    for part in ("tokenizer", "text_encoder"):
        (base / part).symlink_to(text_encoder_folder / part)
    for model, part in zip(copies(sd21), ("unet", "vae"), strict=True):
        model.half().save_pretrained(base / part, variant="fp16")
    out, _ = converted(checkpoint("osediff"), base)
    pipeline = load_pipeline(out, torch.float32)
    exact = load_pipeline(converted(checkpoint("osediff"), sd21_folder)[0], torch.float32)
    assert 0 < difference(ends(pipeline)[:1], ends(exact)[:1]) < 0.05


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.out.2.weight",
        "model.diffusion_model.output_blocks.0.0.in_layers.2.bias",
        "first_stage_model.decoder.conv_out.weight",
        "cond_stage_model.model.token_embedding.weight",
        "cond_stage_model.model.transformer.resblocks.0.ln_1.weight",
    ],
)
def test_an_incomplete_base_file_is_refused(name, base_file, checkpoint, tmp_path):
    tensors = load_file(base_file)
    for damage in ("shape", "key"):
        if damage == "shape":
            tensors[name] = tensors[name][..., :-1].clone()
        else:
            del tensors[name]
        save_file(tensors, tmp_path / "base.safetensors")
        with pytest.raises(CheckpointError, match=r"looks like Stable Diffusion 2\.x but cannot") as caught:
            converted(checkpoint("osediff"), tmp_path / "base.safetensors")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
