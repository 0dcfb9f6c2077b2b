"""Which dtype a device computes in, and the way back from fp32."""

import pytest
import torch
from torch import Tensor, nn

from ctsr.families import get_family
from ctsr.load import load_pipeline
from ctsr.precision import accurate_dtype, choose_dtype, cpu_has_bf16, in_fp32

CPU = torch.device("cpu")


def test_auto_is_bf16_only_where_the_hardware_has_it():
    assert choose_dtype("auto", CPU) == (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    assert choose_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_by_name(name, dtype):
    assert choose_dtype(name, CPU) == dtype


def test_fp16_is_for_gpus():
    assert choose_dtype("fp16", torch.device("cuda")) == torch.float16
    with pytest.raises(ValueError, match="choose precision bf16 or fp32"):
        choose_dtype("fp16", CPU)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="auto, fp32, bf16, fp16"):
        choose_dtype("fp8", CPU)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_in_fp32_and_back_to_the_bit(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).to(dtype, memory_format=torch.channels_last)
    module[1].running_var.data = torch.rand(8)  # one tensor of another dtype
    before = {key: (value.clone(), value.dtype, value.stride()) for key, value in module.state_dict().items()}
    parameters = list(module.parameters())

    def use_and_fail() -> None:
        with in_fp32(module):
            assert {p.dtype for p in module.parameters()} == {torch.float32}
            assert module[1].num_batches_tracked.dtype == torch.int64
            raise KeyError

    with pytest.raises(KeyError):
        use_and_fail()
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    for key, value in module.state_dict().items():
        saved, kind, stride = before[key]
        assert value.dtype == kind
        assert value.stride() == stride
        assert torch.equal(value, saved)


def test_a_torch_without_onednn_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops, "mkldnn", raising=False)
    assert not cpu_has_bf16()
    assert choose_dtype("auto", CPU) == torch.float32


def test_memory_that_runs_out_on_the_way_to_fp32_leaves_the_module_as_it_was(monkeypatch):
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)).half()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    to_float, calls = Tensor.float, iter(range(100))

    def until_full(tensor: Tensor) -> Tensor:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        return to_float(tensor)

    monkeypatch.setattr(Tensor, "float", until_full)
    with pytest.raises(torch.OutOfMemoryError), in_fp32(module):
        pass
    assert all(value.dtype == torch.float16 for value in module.state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("family", "gain", "gpu", "cpu"),
    [
        ("osediff", 14.61, torch.float16, torch.float32),
        ("ctsr", 14.61, torch.float16, torch.float32),
        ("pisa", 1.0, torch.bfloat16, torch.bfloat16),
        ("tadsr", 1.0, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_unet_whose_error_is_amplified_gets_a_dtype_that_is_accurate_enough(family, gain, gpu, cpu):
    known = get_family(family)
    assert known.gain == pytest.approx(gain, abs=0.01)
    assert accurate_dtype(torch.bfloat16, known.gain, torch.device("cuda")) == gpu
    assert accurate_dtype(torch.bfloat16, known.gain, CPU) == cpu
    assert accurate_dtype(torch.float32, known.gain, CPU) == torch.float32
    assert accurate_dtype(torch.float16, 20.0, torch.device("cuda")) == torch.float32


def test_auto_loads_the_unet_so_that_rounding_moves_z0_by_less_than_three_hundredths(make_sd, tmp_path, monkeypatch):
    monkeypatch.setattr("ctsr.precision.cpu_has_bf16", lambda: True)
    make_sd("osediff").save_single_file(tmp_path / "sd.safetensors")
    exact, auto, half = (
        load_pipeline(tmp_path / "sd.safetensors", dtype) for dtype in (torch.float32, "auto", torch.bfloat16)
    )
    assert (auto.unet.dtype, auto.vae.dtype, half.unet.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    ends = [pipeline.endpoints([z]).z0 for pipeline in (exact, auto, half)]
    errors = [float((end - ends[0]).square().mean().sqrt() / ends[0].square().mean().sqrt()) for end in ends[1:]]
    assert errors[0] < 1e-5 < errors[1]
    make_sd("tadsr").save_single_file(tmp_path / "tadsr.safetensors")
    assert load_pipeline(tmp_path / "tadsr.safetensors", "auto").unet.dtype == torch.bfloat16
