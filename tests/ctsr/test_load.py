"""Single files and folders: what comes back is what was saved, and what cannot be read says so in one sentence."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctsr import CheckpointError, CTSRPipeline, precision
from ctsr.checkpoints import own
from ctsr.checkpoints.inspect import look, read
from ctsr.checkpoints.own import MINI_WEIGHTS
from ctsr.load import BUILT_INS, load_pipeline
from ctsr.models.forward import latent_channels
from ctsr.models.lora import add_lora
from ctsr.runtime.speed import make_input

ROOT = Path(__file__).resolve().parents[2]


def picture(height: int = 9, width: int = 13) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def result(pipeline: CTSRPipeline) -> Tensor:
    return pipeline(picture(), t=0.3, output_type="pt").images


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a single file with its tensors and metadata changed, and no checksum, as the first files had none."""
    tensors = load_file(source)
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
    del metadata["checksum"]
    change(tensors, metadata)
    save_file(tensors, target, metadata=metadata)
    return target


@pytest.mark.parametrize("family", ["mini", "ctsr", "osediff"])
def test_single_file_round_trip(make_mini, make_sd, family, tmp_path):
    pipeline = make_mini() if family == "mini" else make_sd(family)
    path = tmp_path / "new folder" / "model.safetensors"
    pipeline.save_single_file(path, dtype=torch.float32)
    loaded = CTSRPipeline.from_single_file(path, torch_dtype=torch.float32)
    assert loaded.family == pipeline.family
    assert loaded.config["color_fix"] == pipeline.config["color_fix"]
    assert torch.equal(result(loaded), result(pipeline))
    pipeline.save_single_file(path, torch.float16)
    weights = sum(p.numel() for model in (pipeline.vae, pipeline.unet) for p in model.parameters())
    assert path.stat().st_size < 2 * weights + 60_000  # two bytes each, and a header
    halved = CTSRPipeline.from_single_file(str(path), torch_dtype=torch.float32)
    assert (result(halved) - result(pipeline)).abs().max() < 0.02
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_dtype_and_layout(tiny_mini_file):
    loaded = CTSRPipeline.from_single_file(tiny_mini_file, torch_dtype=torch.bfloat16)
    assert {p.dtype for m in (loaded.vae, loaded.unet) for p in m.parameters()} == {torch.bfloat16}
    assert loaded.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not loaded.unet.training
    assert not loaded.vae.training


@pytest.mark.parametrize("make", ["make_mini", "make_sd"])
def test_folder_round_trip(make, request, tmp_path):
    pipeline = request.getfixturevalue(make)()
    pipeline.save_pretrained(tmp_path)
    loaded = CTSRPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert loaded.family == pipeline.family
    assert torch.equal(result(loaded), result(pipeline))
    assert torch.equal(result(load_pipeline(tmp_path, torch.float32)), result(pipeline))


def test_folder_in_a_fresh_process(tiny_sd, tmp_path):
    """diffusers looks components up in modules that are loaded: `import ctsr` must be enough."""
    tiny_sd.save_pretrained(tmp_path)
    code = (
        "import sys; from ctsr import CTSRPipeline;print(type(CTSRPipeline.from_pretrained(sys.argv[1]).vae).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split()[-1:] == ["TimeAwareAutoencoderKL"], done.stderr


BY_PATH = """
import importlib, importlib.util, sys
from pathlib import Path

name, root, *folders = sys.argv[1:]
spec = importlib.util.spec_from_file_location(name, f"{root}/__init__.py", submodule_search_locations=[root])
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
load_pipeline = importlib.import_module(name + ".ctsr.load").load_pipeline
assert "ctsr" not in sys.modules

import torch

x = torch.load("picture.pt")
for folder in folders:
    pipeline = load_pipeline(folder, torch.float32)
    print(type(pipeline.unet).__name__, type(pipeline.vae).__module__)
    torch.save(pipeline(x, t=0.3, output_type="pt").images, Path(folder, "result.pt"))
"""


def test_a_folder_loads_when_the_package_goes_by_another_name(tiny_mini, tiny_sd, tmp_path):
    """As inside ComfyUI; the names of modules in model_index.json lead nowhere there."""
    pipelines = {"tiny-mini": tiny_mini, "tiny-sd": tiny_sd}
    for folder, pipeline in pipelines.items():
        pipeline.save_pretrained(tmp_path / folder)
    torch.save(picture(), tmp_path / "picture.pt")
    command = [sys.executable, "-c", BY_PATH, "made-up name", str(ROOT), *pipelines]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "TimeConditionedUNetMini made-up name.ctsr.models.autoencoder_mini",
        "UNet2DConditionModel made-up name.ctsr.models.autoencoder_kl_time_aware",
    ]
    for folder, pipeline in pipelines.items():
        assert (torch.load(tmp_path / folder / "result.pt") - result(pipeline)).abs().max() < 1e-5


def test_a_component_of_an_unknown_class_is_refused(tiny_sd, tmp_path):
    tiny_sd.save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("UNet2DConditionModel", "FutureUNet"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="unet is a FutureUNet, which cannot be loaded: use one of") as caught:
        load_pipeline(tmp_path)
    assert "UNet2DConditionModel" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_part_of_a_folder_is_not_looked_for_on_a_hub(tiny_mini, tmp_path, monkeypatch):
    """A path of two parts, such as folder/unet, could be a name there."""
    tiny_mini.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved" / "unet")
    monkeypatch.chdir(tmp_path)
    opened: list[object] = []

    def refuse(*address: object, **_options: object) -> None:
        opened.append(address)
        raise OSError("a test without a network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(CheckpointError, match="unet is missing; fetch the whole folder again"):
        load_pipeline("saved")
    assert not opened


def test_three_routes(tiny_mini, tiny_mini_file, tmp_path, monkeypatch):
    tiny_mini.save_pretrained(tmp_path)
    monkeypatch.setitem(BUILT_INS, "mini", tiny_mini_file)
    for model in ("mini", tiny_mini_file, str(tiny_mini_file), tmp_path, str(tmp_path)):
        loaded = load_pipeline(model, torch.float32)
        assert torch.equal(result(loaded), result(tiny_mini))


ROUTES = {
    "mini": lambda path, **dtype: CTSRPipeline.mini(**dtype),
    "file": lambda path, **dtype: CTSRPipeline.from_single_file(path, **dtype),
    "folder": lambda path, **dtype: CTSRPipeline.from_pretrained(path, **dtype),
    "by name": lambda path, **dtype: load_pipeline(path, **dtype),
}


@pytest.mark.parametrize("route", ROUTES)
def test_one_rule_for_the_dtype_on_every_route(route, make_mini, tmp_path, monkeypatch):
    """fp32 unless told, whatever the files hold and whatever the processor has."""
    half, path = torch.bfloat16, tmp_path / ("model" if route == "folder" else "model.safetensors")
    pipeline = make_mini()
    pipeline.to(half)
    (pipeline.save_pretrained if route == "folder" else pipeline.save_single_file)(path)
    monkeypatch.setattr(own, "MINI_WEIGHTS", path)
    for has_it in (True, False):
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda has_it=has_it: has_it)
        for given, expected in (({}, torch.float32), ({"torch_dtype": "auto"}, half if has_it else torch.float32)):
            loaded = ROUTES[route](path, **given)
            assert (loaded.vae.dtype, loaded.unet.dtype) == (expected, expected)
    again = ROUTES[route](path, torch_dtype=half)
    assert torch.equal(result(again), result(pipeline))
    if route != "by name":
        mixed = ROUTES[route](path, dtype={"vae": torch.float32, "default": half})
        assert (mixed.vae.dtype, mixed.unet.dtype) == (torch.float32, half)


@pytest.mark.skipif(not MINI_WEIGHTS.is_file(), reason="ctsr-mini is not trained yet")
@pytest.mark.parametrize("dtype", [{}, {"torch_dtype": torch.bfloat16}], ids=["default", "bf16"])
def test_saving_and_loading_the_built_in_mini_changes_no_bit(dtype, tmp_path):
    pipeline = CTSRPipeline.mini(**dtype)
    expected = result(pipeline)
    pipeline.save_pretrained(tmp_path / "folder")
    pipeline.save_single_file(tmp_path / "file.safetensors")
    assert torch.equal(result(CTSRPipeline.from_pretrained(tmp_path / "folder", **dtype)), expected)
    assert torch.equal(result(CTSRPipeline.from_single_file(tmp_path / "file.safetensors", **dtype)), expected)


@pytest.mark.skipif(not MINI_WEIGHTS.is_file(), reason="ctsr-mini is not trained yet")
def test_the_built_in_mini():
    images = CTSRPipeline.mini()(picture(), t=0.5).images
    assert images[0].size == (52, 36)


def test_files_that_are_no_checkpoint(tiny_mini_file, tmp_path):
    whole = tiny_mini_file.read_bytes()
    cases = {
        "missing": (None, "does not exist"),
        "empty": (b"", "truncated"),
        "cut": (whole[: len(whole) // 2], "truncated"),
        "header": (whole[:100], "truncated"),
        "text": (b"hello " * 100, "truncated or not a safetensors file"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / f"{name}.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_pipeline(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="without model_index"):
        load_pipeline(tmp_path)


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="did not write"):
        load_pipeline(path)


def drop(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    del tensors["unet.conv_out.weight"]


def reshape(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["unet.conv_out.bias"] = torch.zeros(5)


def add(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors["vae.extra"] = torch.zeros(5)


def other_class(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["config"] = metadata["config"].replace("TimeConditionedUNetMini", "FutureUNet")


def other_family(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    config["settings"]["family"] = "future"
    metadata["config"] = json.dumps(config)


def broken_json(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metadata["config"] = metadata["config"][:-1]


@pytest.mark.parametrize("change", [drop, reshape, add, other_class, other_family, broken_json])
def test_a_changed_file_is_refused(change, tiny_mini_file, tmp_path):
    path = rewrite(tiny_mini_file, tmp_path / "changed.safetensors", change)
    with pytest.raises(CheckpointError, match="fetch it again") as caught:
        load_pipeline(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_refused(tiny_mini, tmp_path):
    tiny_mini.save_pretrained(tmp_path)
    weights = next((tmp_path / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_pipeline(tmp_path)


def test_a_failing_save_leaves_no_file_and_keeps_the_old_one(tiny_mini, tmp_path):
    path = tmp_path / "model.safetensors"
    path.mkdir()  # nothing can be renamed over a folder
    with pytest.raises(OSError):  # noqa: PT011  # of another kind on every system
        tiny_mini.save_single_file(path)
    assert list(tmp_path.iterdir()) == [path]
    assert list(path.iterdir()) == []


def convolutions(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]


def with_adapters(pipeline: CTSRPipeline) -> CTSRPipeline:
    """LoRA on UNet and encoder, none of it zero; as the training leaves a pipeline."""
    pytest.importorskip("peft")
    from ctsr.models.lora import add_lora, lora_parameters

    add_lora(pipeline.unet, {"head": ["conv_in"], "rest": convolutions(pipeline.unet)[1:]}, rank=3, alpha=6)
    add_lora(pipeline.vae, {"head": ["encoder.conv_in", "encoder.mid_block.attentions.0.to_q"]}, rank=2, alpha=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (*lora_parameters(pipeline.unet), *lora_parameters(pipeline.vae)):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return pipeline


def test_adapters_are_kept_to_the_bit(make_sd, tmp_path):
    pipeline = with_adapters(make_sd())
    path = tmp_path / "kept.safetensors"
    pipeline.save_single_file(path, dtype=torch.float32)
    loaded = CTSRPipeline.from_single_file(path, torch_dtype=torch.float32)
    assert torch.equal(result(loaded), result(pipeline))
    assert not torch.allclose(result(loaded), result(make_sd()), atol=1e-3)
    with safe_open(path, framework="pt") as file:
        spec = json.loads(file.metadata()["config"])["components"]
        keys = set(file.keys())
    assert spec["unet"]["lora"] == {
        "rank": 3,
        "alpha": 6,
        "adapters": {"head": ["conv_in"], "rest": convolutions(make_sd().unet)[1:]},
    }
    assert "lora" not in spec["prompt_embeddings"]
    assert {"unet.conv_in.base_layer.weight", "unet.conv_out.lora_A.rest.weight"} <= keys
    again = tmp_path / "again.safetensors"
    loaded.save_single_file(again, dtype=torch.float32)
    assert torch.equal(result(CTSRPipeline.from_single_file(again, torch_dtype=torch.float32)), result(pipeline))


def test_merged_adapters_leave_a_plain_file(make_sd, tmp_path):
    pipeline = with_adapters(make_sd())
    from ctsr.models.lora import merge_lora

    unmerged = result(pipeline)
    for model in (pipeline.unet, pipeline.vae):
        merge_lora(model)
    merged, plain = tmp_path / "merged.safetensors", tmp_path / "plain.safetensors"
    pipeline.save_single_file(merged, dtype=torch.float32)
    make_sd().save_single_file(plain, dtype=torch.float32)
    with safe_open(merged, framework="pt") as file, safe_open(plain, framework="pt") as other:
        assert file.metadata()["config"] == other.metadata()["config"]
        assert set(file.keys()) == set(other.keys())
    loaded = CTSRPipeline.from_single_file(merged, torch_dtype=torch.float32)
    torch.testing.assert_close(result(loaded), unmerged, rtol=0, atol=1e-4)


def test_kept_adapters_without_peft(make_sd, tmp_path, monkeypatch):
    path = tmp_path / "kept.safetensors"
    with_adapters(make_sd()).save_single_file(path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(CheckpointError, match=r"need peft .*pip install") as caught:
        load_pipeline(path)
    assert "\n" not in str(caught.value)


def test_adapters_that_do_not_all_act_are_not_kept(make_sd, tmp_path):
    path = tmp_path / "model.safetensors"
    pipeline = with_adapters(make_sd())
    pipeline.unet.set_adapter("head")
    with pytest.raises(ValueError, match="not all of them act in down_blocks"):
        pipeline.save_single_file(path)
    pipeline.unet.set_adapter(["head", "rest"])
    pipeline.unet.disable_adapters()
    with pytest.raises(ValueError, match="merge_lora, then save"):
        pipeline.save_single_file(path)
    pipeline.unet.enable_adapters()
    pipeline.unet.fuse_lora()
    with pytest.raises(ValueError, match="not all of them act"):
        pipeline.save_single_file(path)
    pipeline.unet.unfuse_lora()
    pipeline.save_single_file(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("kind", "message"), [("use_dora", "not plain LoRA"), ("use_rslora", "alpha / rank")])
def test_adapters_of_another_kind_are_not_kept(make_sd, tmp_path, kind, message):
    peft = pytest.importorskip("peft")
    pipeline = make_sd()
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["conv_in"], **{kind: True}), "x")
    with pytest.raises(ValueError, match=message):
        pipeline.save_single_file(tmp_path / "model.safetensors")


def test_adapters_of_several_ranks_are_not_kept(make_sd, tmp_path):
    pipeline = with_adapters(make_sd())
    from ctsr.models.lora import add_lora

    add_lora(pipeline.unet, {"second": ["conv_in"]}, rank=1)
    with pytest.raises(ValueError, match="several ranks"):
        pipeline.save_single_file(tmp_path / "model.safetensors")


def no_adapters(spec: dict) -> None:
    spec["unet"]["lora"] = {}


def other_modules(spec: dict) -> None:
    spec["unet"]["lora"]["adapters"]["head"] = ["conv_future"]


def other_rank(spec: dict) -> None:
    spec["unet"]["lora"]["rank"] = 5


@pytest.mark.parametrize("change", [no_adapters, other_modules, other_rank])
def test_a_wrong_list_of_adapters_is_refused(change, make_sd, tmp_path):
    def edit(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        config = json.loads(metadata["config"])
        change(config["components"])
        metadata["config"] = json.dumps(config)

    with_adapters(make_sd()).save_single_file(tmp_path / "kept.safetensors")
    path = rewrite(tmp_path / "kept.safetensors", tmp_path / "changed.safetensors", edit)
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_pipeline(path)


def test_a_class_that_cannot_be_loaded_back_is_not_saved(make_sd, tmp_path):
    class OwnUNet(UNet2DConditionModel):
        pass

    pipeline = make_sd()
    pipeline.unet.__class__ = OwnUNet
    path = tmp_path / "new folder" / "model.safetensors"
    with pytest.raises(ValueError, match="cannot keep a OwnUNet"):
        pipeline.save_single_file(path)
    assert not path.parent.exists()


def test_others_may_read_a_file_where_they_may_read_new_files(tiny_mini: CTSRPipeline, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    tiny_mini.save_single_file(tmp_path / "weights.safetensors")
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_a_folder_cannot_hold_lora_apart(make_sd, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pipeline = make_sd()
    add_lora(pipeline.unet, {"default": ["conv_out"]})
    with pytest.raises(ValueError, match="merge_lora"):
        pipeline.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_header_whose_length_looks_like_a_pickle(tmp_path):
    """The first bytes of a safetensors file are its header's length, here 640, which begins as pickles do."""
    path = tmp_path / "model.safetensors"
    for length in range(500, 640):
        save_file({"weight": torch.zeros(1)}, path, metadata={"note": length * "x"})
        if int.from_bytes(path.read_bytes()[:8], "little") == 640:
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert look(path).kind == "safetensors"


def test_a_dictionary_that_holds_itself_is_no_checkpoint_and_ends(tmp_path):
    data = {}
    data["state_dict"] = data
    torch.save(data, tmp_path / "endless.pt")
    assert read(tmp_path / "endless.pt").keys == {"state_dict"}


def test_the_built_in_model_can_be_planned():
    """Its networks' inputs are known without a picture, those of the decoder too."""
    pipe = CTSRPipeline.mini()
    assert latent_channels(pipe.vae) == make_input(pipe.network("unet"), 64, 64).shape[1]
    shapes = {stage: make_input(pipe.network(stage), 16, 16).shape for stage in ("encode", "unet", "decode")}
    assert shapes["unet"] == shapes["decode"]
    assert shapes["encode"][1] == 3
    assert pipe.plan([(64, 64)]).refusal is None
