"""The pipeline as a citizen of diffusers: its routes of loading, its switches, users' own LoRA, and the example."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers.models.attention_processor import Attention
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctsr import CheckpointError, CTSRError, CTSRPipeline, LoraVariant, precision
from ctsr.app import info
from ctsr.runtime import attention
from ctsr.runtime.attention import use_attention

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ON_GPU = torch.cuda.is_available()


def picture(height: int = 9, width: int = 13) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def result(pipeline: CTSRPipeline, **options: object) -> Tensor:
    return pipeline(picture(), **{"t": 0.3, "output_type": "pt", **options}).images.cpu()


def same(a: Tensor, b: Tensor) -> bool:
    """Up to rounding: two models in memory do not round alike to the bit."""
    return bool((a - b).abs().max() < 1e-5)


def pisa(osediff: CTSRPipeline) -> CTSRPipeline:
    """A family with a fourth component: what makes the UNet its other variant."""
    shapes = {"conv_in": list(osediff.unet.conv_in.weight.shape), "conv_out": list(osediff.unet.conv_out.weight.shape)}
    variant = LoraVariant(variant="full", rank=2, scaling=1.0, shapes=shapes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in variant.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    parts = {"vae": osediff.vae, "unet": osediff.unet, "prompt_embeddings": osediff.prompt_embeddings}
    return CTSRPipeline(**parts, family="pisa", unet_variant=variant)


def dtypes(pipeline: CTSRPipeline) -> list[torch.dtype]:
    return [component.dtype for component in (pipeline.vae, pipeline.unet)]


@pytest.fixture(scope="module")
def folder(tiny_sd: CTSRPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_sd as save_pretrained writes it; do not change it."""
    path = tmp_path_factory.mktemp("saved") / "sd"
    tiny_sd.save_pretrained(path)
    return path


# ------------------------------------------------------------------------------------ routes, in fresh processes

# Loads every folder in the arguments by LOAD and writes what it makes of picture.pt beside it.
ROUTE = """
import sys
import torch

def run(load):
    x = torch.load("picture.pt")
    for name in sys.argv[1:]:
        pipeline = load(name)
        print(type(pipeline).__module__, type(pipeline.vae).__module__)
        torch.save(pipeline(x, t=0.3, output_type="pt").images, name + ".pt")
"""
OWN = """
from ctsr import CTSRPipeline

run(CTSRPipeline.from_pretrained)
"""
THEIRS = """
from diffusers import DiffusionPipeline

options = {"trust_remote_code": True, "low_cpu_mem_usage": False}
run(lambda name: DiffusionPipeline.from_pretrained(name, custom_pipeline=name, **options))
"""
# The stand-in is there before ctsr is: a function that ctsr had imported by name would not be replaced.
HUB = """
import huggingface_hub

huggingface_hub.snapshot_download = lambda repo_id, **options: repo_id.removeprefix("someone/")
from ctsr import CTSRPipeline

run(lambda name: CTSRPipeline.from_pretrained(f"someone/{name}"))
"""


@pytest.mark.parametrize("route", [OWN, THEIRS, HUB], ids=["own", "theirs", "hub"])
def test_every_route_in_a_fresh_process(route, tiny_mini, tiny_sd, make_sd, tmp_path):
    pipelines = {"mini": tiny_mini, "sd": tiny_sd, "pisa": pisa(make_sd("osediff"))}
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(tmp_path / name)
    torch.save(picture(), tmp_path / "picture.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ROUTE + route, *pipelines]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "ctsr.pipeline ctsr.models.autoencoder_mini",
        "ctsr.pipeline ctsr.models.autoencoder_kl_time_aware",
        "ctsr.pipeline ctsr.models.autoencoder_kl_time_aware",
    ]
    for name, pipeline in pipelines.items():
        assert same(torch.load(tmp_path / f"{name}.pt"), result(pipeline))


# ------------------------------------------------------------------------------------------------- a name on the hub


class Hub:
    """Repositories in a folder; `snapshot_download` copies of one what the patterns allow, as the real one fetches."""

    def __init__(self, root: Path):
        self.root = root
        self.asked: list[dict[str, object]] = []

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], **options: object) -> str:
        self.asked.append({"repo_id": repo_id, **options})
        source, target = self.root / repo_id, self.root / "cache" / f"snapshot{len(self.asked)}"
        files = [file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, target / file)
        return str(target)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


def test_a_name_on_the_hub_fetches_what_is_read_and_nothing_else(hub, tiny_sd, make_sd):
    repository = hub.root / "someone" / "model"
    tiny_sd.save_pretrained(repository)
    halved = make_sd()
    halved.to(torch.float16)
    halved.save_pretrained(repository, variant="fp16")
    tiny_sd.save_pretrained(repository, safe_serialization=False)
    loaded = CTSRPipeline.from_pretrained(
        "someone/model", cache_dir="here", revision="v1", token="secret", local_files_only=True, force_download=True
    )
    assert same(result(loaded), result(tiny_sd))
    assert loaded.name_or_path == "someone/model"
    assert hub.asked == [
        {
            "repo_id": "someone/model",
            "cache_dir": "here",
            "revision": "v1",
            "token": "secret",
            "local_files_only": True,
            "force_download": True,
        }
    ]
    in_fp16 = CTSRPipeline.from_pretrained("someone/model", variant="fp16")
    assert torch.equal(in_fp16.unet.conv_in.weight.half(), halved.unet.conv_in.weight)
    assert not torch.equal(in_fp16.unet.conv_in.weight, loaded.unet.conv_in.weight)
    pickled = CTSRPipeline.from_pretrained("someone/model", use_safetensors=False)
    assert torch.equal(pickled.unet.conv_in.weight, loaded.unet.conv_in.weight)
    for number, suffix in enumerate((".safetensors", ".fp16.safetensors", ".bin"), start=1):
        snapshot = hub.root / "cache" / f"snapshot{number}"
        parts = ("config.json", f"diffusion_pytorch_model{suffix}")
        expected = {f"{name}/{part}" for name in ("vae", "unet", "prompt_embeddings") for part in parts}
        fetched = {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()}
        assert fetched == {"model_index.json"} | expected


def test_shards_are_fetched_by_either_naming(hub):
    repository = hub.root / "someone" / "model"
    stem = "unet/diffusion_pytorch_model"
    sharded = {f"{stem}.fp16-00001-of-00002.safetensors", f"{stem}-00002-of-00002.fp16.safetensors"}
    wanted = sharded | {f"{stem}.safetensors.index.fp16.json", "model_index.json"}
    for file in (*wanted, f"{stem}-00001-of-00002.safetensors", f"{stem}.fp16.bin", "pipeline.py", "big.pkl"):
        (repository / file).parent.mkdir(parents=True, exist_ok=True)
        (repository / file).touch()
    snapshot = Path(CTSRPipeline.download("someone/model", variant="fp16"))
    assert {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()} == wanted


@pytest.mark.parametrize("name", ["someone/nothing", "./no/folder", "a//b"])
def test_a_name_that_the_hub_does_not_give(name, tmp_path):
    """The real function: it is told to open no connection."""
    with pytest.raises(CheckpointError, match=r"is no folder here, and the hub does not give it .*check the") as caught:
        CTSRPipeline.from_pretrained(name, local_files_only=True, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- options of from_pretrained


@pytest.mark.parametrize("spelling", ["torch_dtype", "dtype"])
def test_dtype(spelling, folder, monkeypatch):
    half, full = torch.bfloat16, torch.float32
    assert dtypes(CTSRPipeline.from_pretrained(folder)) == [full, full]
    assert dtypes(CTSRPipeline.from_pretrained(folder, **{spelling: half})) == [half, half]
    assert dtypes(CTSRPipeline.from_pretrained(folder, **{spelling: {"unet": half}})) == [full, half]
    assert dtypes(CTSRPipeline.from_pretrained(folder, **{spelling: {"vae": full, "default": half}})) == [full, half]
    for has_it in (True, False):
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda has_it=has_it: has_it)
        # A UNet that predicts noise at tau = 999 is never in bf16, see `precision.accurate_dtype`.
        assert dtypes(CTSRPipeline.from_pretrained(folder, **{spelling: "auto"})) == [half if has_it else full, full]
    with pytest.raises(ValueError, match=r"dtype must be a torch\.dtype, 'auto'"):
        CTSRPipeline.from_pretrained(folder, **{spelling: "float16"})
    with pytest.raises(ValueError, match="two spellings of one argument"):
        CTSRPipeline.from_pretrained(folder, torch_dtype=half, dtype=half)


def test_device_map(folder):
    for device in ("cpu", CPU):
        assert CTSRPipeline.from_pretrained(folder, device_map=device).device == CPU
    for spread in ("balanced", "auto", {"unet": 0}):
        with pytest.raises(ValueError, match=r"name one device, .* enable_model_cpu_offload"):
            CTSRPipeline.from_pretrained(folder, device_map=spread)
    with pytest.raises(ValueError, match="'nonsense' is no device"):
        CTSRPipeline.from_pretrained(folder, device_map="nonsense")


def test_parts_and_settings_instead_of_the_folder_s(folder, make_sd, tmp_path):
    unet = make_sd("osediff").unet
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "unet")  # not even looked at
    loaded = CTSRPipeline.from_pretrained(
        tmp_path, unet=unet, family="osediff", encoder_timesteps=None, color_fix="adain", torch_dtype=torch.bfloat16
    )
    assert loaded.unet is unet
    assert loaded.family.name == "osediff"
    assert loaded.config["color_fix"] == "adain"
    assert dtypes(loaded) == [torch.bfloat16, torch.float32]
    with pytest.raises(ValueError, match="takes no scheduler"):
        CTSRPipeline.from_pretrained(folder, scheduler=None)


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ({}, {"variant": "fp16"}),
        ({"variant": "fp16"}, {}),
        ({"variant": "fp16"}, {"variant": "bf16"}),
        ({}, {"use_safetensors": False}),
        ({"safe_serialization": False}, {}),
    ],
)
def test_other_weights_than_asked_for(saved, wanted, tiny_mini, tmp_path):
    tiny_mini.save_pretrained(tmp_path, **saved)
    with pytest.raises(CheckpointError, match=r"holds no diffusion_\S+ but diffusion_\S+: set `variant`") as caught:
        CTSRPipeline.from_pretrained(tmp_path, **wanted)
    assert "\n" not in str(caught.value)


def test_other_checkpoints_say_what_they_are(tiny_mini_file, tmp_path):
    with pytest.raises(CheckpointError, match="use from_single_file"):
        CTSRPipeline.from_pretrained(tiny_mini_file)
    with pytest.raises(CheckpointError, match=r"without model_index\.json"):
        CTSRPipeline.from_pretrained(tmp_path)
    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CheckpointError, match="ctsr convert"):
        CTSRPipeline.from_pretrained(tmp_path)


# --------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize(
    ("saved", "wanted", "suffix"),
    [
        ({"variant": "fp16"}, {"variant": "fp16"}, ".fp16.safetensors"),
        ({"safe_serialization": False}, {"use_safetensors": False}, ".bin"),
    ],
)
def test_options_of_saving(saved, wanted, suffix, tiny_sd, tmp_path):
    tiny_sd.save_pretrained(tmp_path / "new" / "folder", **saved)
    for name in ("vae", "unet", "prompt_embeddings"):
        assert (tmp_path / "new" / "folder" / name / f"diffusion_pytorch_model{suffix}").is_file()
    assert same(result(CTSRPipeline.from_pretrained(tmp_path / "new" / "folder", **wanted)), result(tiny_sd))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards(variant, tiny_sd, tmp_path):
    tiny_sd.save_pretrained(tmp_path, variant=variant, max_shard_size="1MB")  # older diffusers ignores it: one file
    weights = list((tmp_path / "unet").glob("*.safetensors"))
    assert len(weights) == len(list((tmp_path / "unet").glob("*-of-*"))) or len(weights) == 1
    assert same(result(CTSRPipeline.from_pretrained(tmp_path, variant=variant)), result(tiny_sd))


def test_a_folder_tells_diffusers_where_the_class_is(folder):
    assert (folder / "pipeline.py").read_text(encoding="utf-8") == "from ctsr import CTSRPipeline\n"
    assert json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"] == "CTSRPipeline"


# ------------------------------------------------------------------------------------------------------ offloading


def offload_layers(pipeline: CTSRPipeline) -> None:
    """As diffusers does for a GPU, on the CPU, which it does not take itself."""
    accelerate = pytest.importorskip("accelerate")
    for name, component in pipeline.components.items():
        if isinstance(component, nn.Module) and name not in pipeline._exclude_from_cpu_offload:
            accelerate.cpu_offload(component, CPU, offload_buffers=len(component._parameters) > 0)


@pytest.fixture(params=["mini", "sd", "pisa"])
def pipeline(request: pytest.FixtureRequest, make_mini, make_sd) -> CTSRPipeline:
    """Of every kind, to be changed."""
    makers = {"mini": make_mini, "sd": make_sd, "pisa": lambda: pisa(make_sd("osediff"))}
    return makers[request.param]()


def test_offloaded_networks_give_the_same_picture(pipeline):
    pytest.importorskip("accelerate")
    expected = result(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    hooks = [pipeline.unet._hf_hook, pipeline.vae._hf_hook]
    assert same(result(pipeline), expected)
    assert [pipeline.unet._hf_hook, pipeline.vae._hf_hook] != hooks  # off the device again after the call
    assert same(result(pipeline), expected)


def test_offloaded_layers_give_the_same_picture(pipeline):
    expected = result(pipeline)
    offload_layers(pipeline)
    assert pipeline.unet.conv_in.weight.is_meta
    assert same(result(pipeline), expected)
    assert pipeline.unet.conv_in.weight.is_meta


def test_offloaded_layers_overflow_and_run_again_in_fp32(make_mini, caplog):
    pipeline = make_mini()
    with torch.no_grad():
        pipeline.vae.decoder.up_2.weight *= 1e4
        pipeline.vae.decoder.conv_out.weight /= 1e4
    nn.Module.to(pipeline.vae, torch.float16)
    z = pipeline.encode(picture(), 36, 52).latents[0] * 30
    expected = pipeline.decode(z)
    offload_layers(pipeline)
    caplog.clear()
    for _ in range(2):
        assert same(pipeline.decode(z), expected)
    assert caplog.text.count("decode step overflowed in torch.float16") == 2
    assert {parameter.dtype for parameter in pipeline.vae.parameters()} == {torch.float16}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_without_a_gpu(switch, tiny_mini):
    with pytest.raises(ValueError, match="needs a GPU and torch finds none: leave it out"):
        getattr(tiny_mini, switch)()


def test_layers_cannot_be_offloaded_from_the_cpu(tiny_mini):
    with pytest.raises(ValueError, match="name a GPU, or leave offloading out"):
        tiny_mini.enable_sequential_cpu_offload(device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_from_a_gpu(switch, pipeline):
    pytest.importorskip("accelerate")
    expected = result(pipeline.to("cuda"))
    pipeline.to("cpu")
    getattr(pipeline, switch)()
    for _ in range(2):
        assert (result(pipeline) - expected).abs().max() < 2e-3
    assert pipeline.unet.conv_in.weight.device.type != "cuda"


# --------------------------------------------------------------------------------------------------------- tiling


def tiles(pipeline: CTSRPipeline, **options: object) -> int:
    """Tiles that the decoder works in for a result of 256x256."""
    totals: list[int] = []
    pipeline(picture(64, 64), callback=lambda stage, done, total: totals.append(total), **options)
    return totals[-1]


def test_tiling_is_ours_and_not_diffusers_own(make_sd):
    pipeline = make_sd()
    pipeline.enable_vae_tiling(128)
    assert tiles(pipeline) > 1
    assert not pipeline.vae.use_tiling


def test_tiling_by_default(make_mini):
    pipeline = make_mini()
    x = picture(64, 64)
    whole, tiled = (pipeline(x, tile=tile, output_type="pt").images for tile in (0, 128))
    assert tiles(pipeline) == 1
    pipeline.enable_vae_tiling(128)
    assert tiles(pipeline) == 4
    assert tiles(pipeline, tile=256) == 1
    assert torch.equal(pipeline(x, output_type="pt").images, tiled)
    pipeline.disable_vae_tiling()
    assert tiles(pipeline) == 1
    assert torch.equal(pipeline(x, output_type="pt").images, whole)
    pipeline.enable_tiling()
    assert pipeline.default_tile == 512
    pipeline.disable_tiling()
    assert pipeline.default_tile == 0
    with pytest.raises(ValueError, match="at least 128"):
        pipeline.enable_tiling(64)


# ------------------------------------------------------------------------------------------------------ attention


def test_attention_by_name(make_sd, caplog):
    pipeline = make_sd()
    expected = result(pipeline)
    with caplog.at_level(logging.INFO, logger="ctsr"):
        pipeline.set_attention_backend("auto")
    assert "Attention by sdpa." in caplog.text
    for switch in (
        pipeline.enable_xformers_memory_efficient_attention,
        lambda: pipeline.set_attention_backend("xformers"),
    ):
        with pytest.raises(ValueError, match="on cpu here: install it for a CUDA GPU, or choose sdpa"):
            switch()
    pipeline.disable_xformers_memory_efficient_attention()
    assert info.attention(pipeline) == "sdpa"
    assert torch.equal(result(pipeline), expected)


@pytest.mark.skipif(ON_GPU, reason="needs a machine without a CUDA GPU")
def test_xformers_that_is_installed_and_does_not_work(make_sd, caplog, monkeypatch):
    """diffusers' own trial fails here; that the package is found is made up, since it may not be installed."""
    monkeypatch.setattr(attention, "find_spec", lambda name: object())
    pipeline = make_sd()
    expected = result(pipeline)
    with caplog.at_level(logging.INFO, logger="ctsr"):
        assert use_attention((pipeline.unet, pipeline.vae), "auto", CUDA) == "sdpa"
    assert "Attention by sdpa (xformers does not work here" in caplog.text
    with pytest.raises(ValueError, match=r"installed but does not work here .*, or choose sdpa"):
        use_attention((pipeline.unet, pipeline.vae), "xformers", CUDA)
    assert info.attention(pipeline) == "sdpa"
    assert torch.equal(result(pipeline), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_attention_backends_agree(make_sd):
    pytest.importorskip("xformers")
    pipeline = make_sd().to("cuda")
    pipeline.set_attention_backend("sdpa")
    by_sdpa = result(pipeline)
    pipeline.set_attention_backend("auto")
    assert info.attention(pipeline) == "xformers"
    assert {type(m.processor).__name__ for m in pipeline.unet.modules() if isinstance(m, Attention)} == {
        "XFormersAttnProcessor"
    }
    assert (result(pipeline) - by_sdpa).abs().max() < 2e-3
    pipeline.disable_xformers_memory_efficient_attention()
    assert info.attention(pipeline) == "sdpa"


# ----------------------------------------------------------------------------------------------- users' own LoRA


def write_lora(pipeline: CTSRPipeline, path: Path, scale: float = 0.3, prefix: str = "unet.") -> dict[str, Tensor]:
    """A LoRA of rank 2, alpha 2 on the attention of the UNet, as diffusers' training scripts write it."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, module in pipeline.unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator) * scale
            tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator) * scale
    save_file(tensors, path)
    return tensors


@pytest.fixture
def lora(tiny_sd: CTSRPipeline, tmp_path: Path) -> Path:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    write_lora(tiny_sd, tmp_path / "pytorch_lora_weights.safetensors")
    return tmp_path / "pytorch_lora_weights.safetensors"


def merged_by_hand(pipeline: CTSRPipeline, path: Path, weight: float) -> Tensor:
    """The result with W + weight * B A written into the weights."""
    tensors = load_file(path)
    with torch.no_grad():
        for key, a in tensors.items():
            if key.endswith("lora_A.weight"):
                b = tensors[key.replace("lora_A", "lora_B")]
                name = key.removeprefix("unet.").removesuffix(".lora_A.weight")
                pipeline.unet.get_parameter(f"{name}.weight").add_(weight * b @ a)
    return result(pipeline)


def test_lora_of_a_user(lora, make_sd, tiny_sd):
    pipeline = make_sd()
    pipeline.load_lora_weights(lora, adapter_name="mine")
    assert not same(result(pipeline), result(tiny_sd))
    assert (result(pipeline) - merged_by_hand(make_sd(), lora, 1)).abs().max() < 1e-4
    assert info.attention(pipeline) == "sdpa"
    assert pipeline.get_active_adapters() == ["mine"]
    pipeline.set_adapters("mine", 0.5)
    assert (result(pipeline) - merged_by_hand(make_sd(), lora, 0.5)).abs().max() < 1e-4
    pipeline.set_adapters(["mine"], [0.0])
    assert same(result(pipeline), result(tiny_sd))
    pipeline.unload_lora_weights()
    assert torch.equal(result(pipeline), result(tiny_sd))
    assert list(pipeline.unet.state_dict()) == list(tiny_sd.unet.state_dict())


def test_where_lora_is_read_from(lora, make_sd):
    pipeline = make_sd()
    pipeline.load_lora_weights(lora)
    expected = result(pipeline)
    for source in (str(lora), lora.parent, load_file(lora)):
        pipeline.unload_lora_weights()
        pipeline.load_lora_weights(source)
        assert same(result(pipeline), expected)
    pipeline.unload_lora_weights()
    lora.rename(lora.with_name("other.safetensors"))
    pipeline.load_lora_weights(lora.parent, weight_name="other.safetensors")
    assert same(result(pipeline), expected)


def test_lora_in_half_precision(lora, make_sd):
    pipeline = make_sd()
    pipeline.load_lora_weights(lora)
    expected = result(pipeline)
    halved = make_sd()
    nn.Module.to(halved.unet, torch.bfloat16)
    halved.load_lora_weights(lora)
    assert halved.unet.dtype == torch.bfloat16
    assert (result(halved) - expected).abs().mean() < 0.05


def test_lora_in_kohya_s_format_has_its_alpha(lora, make_sd):
    tensors = load_file(lora)
    kohya: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        module, _, part = key.removeprefix("unet.").removesuffix(".weight").rpartition(".")
        name = "lora_unet_" + module.replace(".", "_")
        kohya[f"{name}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = tensor
        kohya[f"{name}.alpha"] = torch.tensor(1.0)
    path = lora.with_name("kohya.safetensors")
    save_file(kohya, path)
    pipeline = make_sd()
    pipeline.load_lora_weights(path)
    assert (result(pipeline) - merged_by_hand(make_sd(), lora, 0.5)).abs().max() < 1e-4  # alpha 1 over rank 2


def test_two_lora(lora, make_sd):
    pipeline = make_sd()
    pipeline.load_lora_weights(lora, adapter_name="one")
    pipeline.load_lora_weights(lora, adapter_name="two")
    pipeline.set_adapters(["one", "two"], [0.75, 0.25])
    assert (result(pipeline) - merged_by_hand(make_sd(), lora, 1)).abs().max() < 1e-4
    pipeline.delete_adapters("two")
    pipeline.set_adapters("one")
    assert (result(pipeline) - merged_by_hand(make_sd(), lora, 1)).abs().max() < 1e-4
    with pytest.raises(ValueError, match="no LoRA 'two'"):
        pipeline.set_adapters("two")
    with pytest.raises(ValueError, match="is a LoRA 'one' already"):
        pipeline.load_lora_weights(lora, adapter_name="one")


def test_fused_lora_is_saved_with_the_weights(lora, make_sd, tmp_path):
    pipeline = make_sd()
    pipeline.load_lora_weights(lora)
    expected = result(pipeline)
    with pytest.raises(ValueError, match="cannot hold LoRA apart"):
        pipeline.save_pretrained(tmp_path / "apart")
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    loaded = CTSRPipeline.from_pretrained(tmp_path / "fused")
    assert (result(loaded) - expected).abs().max() < 1e-4


def test_lora_on_offloaded_networks(lora, make_sd):
    pytest.importorskip("accelerate")
    pipeline = make_sd()
    pipeline.enable_model_cpu_offload(device="cpu")
    pipeline.load_lora_weights(lora)
    assert hasattr(pipeline.unet, "_hf_hook")
    assert (result(pipeline) - merged_by_hand(make_sd(), lora, 1)).abs().max() < 1e-4


def wrong_shapes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros(2, 7) if "lora_A" in key else tensor for key, tensor in tensors.items()}


def other_modules(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("attentions", "future"): tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("change", [wrong_shapes, other_modules])
def test_lora_of_another_base_leaves_everything_as_it_was(change, lora, make_sd, tiny_sd):
    pipeline = make_sd()
    wrong = change(load_file(lora))
    with pytest.raises(ValueError, match=r"does not fit the UNet .*is it of another base") as caught:
        pipeline.load_lora_weights(wrong)
    assert "\n" not in str(caught.value)
    assert torch.equal(result(pipeline), result(tiny_sd))
    assert list(pipeline.unet.state_dict()) == list(tiny_sd.unet.state_dict())
    pipeline.load_lora_weights(lora, adapter_name="good")
    expected = result(pipeline)
    with pytest.raises(ValueError, match="does not fit the UNet"):
        pipeline.load_lora_weights(wrong, adapter_name="bad")
    assert same(result(pipeline), expected)
    assert pipeline.get_list_adapters() == {"unet": ["good"]}


def test_sources_that_are_no_lora(lora, make_sd, tmp_path):
    pipeline = make_sd()
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"unet.conv_in.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    cases = {
        tmp_path / "missing.safetensors": "does not exist",
        tmp_path / "text.safetensors": "gives no LoRA in safetensors",
        tmp_path / "weights.safetensors": "holds no LoRA of a UNet",
    }
    for source, message in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            pipeline.load_lora_weights(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="holds no LoRA of a UNet"):
        pipeline.load_lora_weights({"text_encoder.layer.lora_A.weight": torch.zeros(2, 2)})


def test_the_part_for_a_text_encoder_is_left_out(lora, make_sd, caplog):
    pipeline = make_sd()
    pipeline.load_lora_weights({**load_file(lora), "text_encoder.layer.lora_A.weight": torch.zeros(2, 2)})
    assert "part for a text encoder is left out" in caplog.text
    assert (result(pipeline) - merged_by_hand(make_sd(), lora, 1)).abs().max() < 1e-4


def test_lora_of_the_checkpoint_itself_is_not_touched(lora, make_sd):
    from ctsr.models.lora import add_lora, lora_layers, merge_lora

    pipeline = make_sd()
    add_lora(pipeline.unet, {"own": ["conv_out"]})
    with pytest.raises(ValueError, match=r"LoRA of its own: .*merge_lora\(pipe.unet\)"):
        pipeline.load_lora_weights(lora)
    pipeline.unload_lora_weights()
    assert list(lora_layers(pipeline.unet)) == ["conv_out"]
    merge_lora(pipeline.unet)
    pipeline.load_lora_weights(lora)
    assert (result(pipeline) - merged_by_hand(make_sd(), lora, 1)).abs().max() < 1e-4


def test_lora_beside_the_variant_of_a_family(lora, make_sd):
    pipeline = pisa(make_sd("osediff"))
    pipeline.load_lora_weights(lora)
    assert (result(pipeline) - merged_by_hand(pisa(make_sd("osediff")), lora, 1)).abs().max() < 1e-4


def test_lora_without_peft(lora, make_sd, monkeypatch):
    pipeline = make_sd()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CTSRError, match=r"needs peft and transformers .*pip install 'ctsr\[sd\]'"):
        pipeline.load_lora_weights(lora)


def test_the_mini_takes_no_lora(tiny_mini):
    with pytest.raises(ValueError, match="TimeConditionedUNetMini takes no LoRA: load a checkpoint with a Stable"):
        tiny_mini.load_lora_weights("lora.safetensors")
    tiny_mini.unload_lora_weights()


# -------------------------------------------------------------------------------------------------------- example


def test_the_example(tmp_path):
    Image.new("RGB", (12, 9), (200, 120, 40)).save(tmp_path / "photo.png")
    command = [sys.executable, ROOT / "examples" / "upscale_diffusers.py", "photo.png", "--out", "new folder"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [Path(line).name for line in done.stdout.splitlines()] == [f"photo_t{t}.png" for t in (0.0, 0.5, 1.0)]
    for line in done.stdout.splitlines():
        assert Image.open(tmp_path / line).size == (48, 36)
