"""Single files and folders: what comes back is what was saved, and what cannot be read says so in one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ctsr import CheckpointError, CTSRPipeline, loading
from ctsr.loading import MINI_WEIGHTS, load_pipeline

ROOT = Path(__file__).resolve().parents[1]


def picture(height: int = 9, width: int = 13) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def result(pipeline: CTSRPipeline) -> Tensor:
    return pipeline(picture(), t=0.3, output_type="pt").images


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a single file with its tensors and metadata changed."""
    tensors = load_file(source)
    with safe_open(source, framework="pt") as file:
        metadata = file.metadata()
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
    pipeline.save_single_file(path)
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


def test_three_routes(tiny_mini, tiny_mini_file, tmp_path, monkeypatch):
    tiny_mini.save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "MINI_WEIGHTS", tiny_mini_file)
    for model in ("mini", tiny_mini_file, str(tiny_mini_file), tmp_path, str(tmp_path)):
        loaded = load_pipeline(model, torch.float32)
        assert torch.equal(result(loaded), result(tiny_mini))
    automatic = load_pipeline(tmp_path)
    assert automatic.unet.dtype == automatic.vae.dtype == loading.choose_dtype("auto", torch.device("cpu"))


@pytest.mark.skipif(not MINI_WEIGHTS.is_file(), reason="ctsr-mini is not trained yet")
def test_the_built_in_mini():
    images = CTSRPipeline.mini()(picture(), t=0.5).images
    assert images[0].size == (52, 36)


def test_files_that_are_no_checkpoint(tiny_mini_file, tmp_path):
    whole = tiny_mini_file.read_bytes()
    cases = {
        "missing": (None, "is not a file"),
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
