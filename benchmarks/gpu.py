"""SD 2.1-size networks with random weights: our path against stock eager diffusers modules, on a GPU in one go.

    python -m benchmarks.gpu                    everything, bf16, on the GPU
    python -m benchmarks.gpu --compile          and torch.compile of the three networks
    python -m benchmarks.gpu --tiny             the same at tiny size, to see that it runs (also without a GPU)
    python -m benchmarks.gpu --device cpu --dtype fp32 --repeat 3 --no-pictures        the split on a CPU

Ours is the pipeline's networks: channels-last, GroupNorm and attention as the pipeline has them. Both have the same
weights and take turns; medians. The floor is the counted arithmetic over what one large matrix product attains.
"""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from enum import Enum
from functools import partial
from importlib.util import find_spec
from typing import Annotated, Any

import torch
import typer
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import narrow
from ctsr import CTSRPipeline, PromptEmbeddings, networks
from training.base import SD21_UNET, SD21_VAE

STAGES = ("encode", "unet", "decode")
ROOFLINE_TFLOP = {"encode": 1.08, "unet": 0.68, "decode": 2.48}
"""Of a 512x512 tile at SD 2.1 size; what is counted here should come to about these."""
PICTURES = (512, 1024)
TIMESTEP = 999

Run = Callable[[Tensor], Tensor]
Runs = dict[str, dict[str, Run]]


class DType(str, Enum):
    """What the networks compute in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


DTYPES = {DType.fp32: torch.float32, DType.bf16: torch.bfloat16, DType.fp16: torch.float16}


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(runs: dict[str, Callable[[], Any]], repeat: int, device: torch.device) -> dict[str, float]:
    """Medians of functions that take turns, after one turn to warm up."""
    timings: dict[str, list[float]] = defaultdict(list)
    for turn in range(repeat + 1):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if turn:
                timings[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in timings.items()}


def attained_tflops(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """TFLOP/s of one large matrix product."""
    a = torch.randn(side, side, device=device).to(dtype)
    seconds = median_seconds({"product": lambda: a @ a}, 5, device)["product"]
    return 2 * side**3 / seconds / 1e12


def build(tiny: bool, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, nn.Module], CTSRPipeline]:
    """Stock modules, and a pipeline of their copies."""
    unet_shape, vae_shape = (narrow(SD21_UNET), narrow(SD21_VAE)) if tiny else (dict(SD21_UNET), dict(SD21_VAE))
    torch.manual_seed(0)
    vae, unet = AutoencoderKL(**vae_shape), UNet2DConditionModel(**unet_shape)
    stock: dict[str, nn.Module] = {"vae": vae, "unet": unet}
    for module in stock.values():
        nn.Module.to(module, device, dtype).eval().requires_grad_(False)
    embeds = torch.randn(1, 77, unet_shape["cross_attention_dim"])
    prompt = PromptEmbeddings.from_embeds(embeds)
    nn.Module.to(prompt, device, dtype)
    ours = CTSRPipeline(copy.deepcopy(vae), copy.deepcopy(unet), prompt, family="osediff")
    return stock, ours


def steps(stock: dict[str, nn.Module], ours: CTSRPipeline) -> Runs:
    """Each step by each of the two."""
    vae: Any = stock["vae"]
    unet: Any = stock["unet"]
    assert ours.prompt_embeddings is not None
    embeds = ours.prompt_embeddings(1)
    return {
        "stock": {
            "encode": lambda x: vae.encode(x).latent_dist.mode(),
            "unet": lambda z: unet(z, TIMESTEP, encoder_hidden_states=embeds).sample,
            "decode": lambda z: vae.decode(z).sample,
        },
        "ours": {
            "encode": networks.encoder(ours.vae, None).call,
            "unet": networks.unet(ours.unet, TIMESTEP, embeds).call,
            "decode": networks.decoder(ours.vae).call,
        },
    }


def inputs(side: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """What each step is given, for a result of side x side pixels."""
    z = torch.randn(1, 4, side // 8, side // 8, device=device).to(dtype)
    x = torch.rand(1, 3, side, side, device=device).to(dtype) * 2 - 1
    return {"encode": x, "unet": z, "decode": z}


def print_split(runs: Runs, given: dict[str, Tensor], repeat: int, device: torch.device, tflops: float) -> None:
    """Seconds of each step by each path, against the arithmetic's floor."""
    print(f"{'':8s}" + "".join(f"{name:>18s}" for name in runs) + f"{'TFLOP':>10s}{'floor':>12s}")
    totals: dict[str, float] = defaultdict(float)
    for stage in STAGES:
        counter = FlopCounterMode(display=False)
        with counter:
            runs["stock"][stage](given[stage])
        work = counter.get_total_flops() / 1e12
        calls = {name: partial(steps[stage], given[stage]) for name, steps in runs.items()}
        seconds = median_seconds(calls, repeat, device)
        for name, value in seconds.items():
            totals[name] += value
        totals["TFLOP"] += work
        row = "".join(f"{1e3 * seconds[name]:>15.1f} ms" for name in runs)
        print(f"{stage:8s}{row}{work:>10.3f}{1e3 * work / tflops:>9.1f} ms")
    row = "".join(f"{1e3 * totals[name]:>15.1f} ms" for name in runs)
    print(f"{'all':8s}{row}{totals['TFLOP']:>10.3f}{1e3 * totals['TFLOP'] / tflops:>9.1f} ms")
    for name in runs:
        print(f"{name}: {totals['stock'] / totals[name]:.2f} times stock's speed")


def differences(runs: Runs, given: dict[str, Tensor]) -> None:
    """How far the paths are from the stock modules."""
    for name, of in runs.items():
        if name != "stock":
            for stage in STAGES:
                expected = runs["stock"][stage](given[stage]).float()
                error = (of[stage](given[stage]).float() - expected).abs().max() / expected.abs().max()
                print(f"{name} {stage}: largest difference {float(error):.1e} of the largest value")


def attention(ours: CTSRPipeline, z: Tensor, repeat: int, device: torch.device) -> None:
    """The UNet with xformers against torch's own attention."""
    if device.type != "cuda" or find_spec("xformers") is None:
        print("xformers: not measured (needs a CUDA device and the package)")
        return
    unet: Any = ours.unet
    assert ours.prompt_embeddings is not None
    run = networks.unet(ours.unet, TIMESTEP, ours.prompt_embeddings(1)).call
    results: dict[str, Tensor] = {}
    for name, on in (("sdpa", False), ("xformers", True)):
        unet.set_use_memory_efficient_attention_xformers(on)
        results[name] = run(z).float()
        print(f"UNet with {name}: {1e3 * median_seconds({name: lambda: run(z)}, repeat, device)[name]:.1f} ms")
    unet.set_use_memory_efficient_attention_xformers(False)
    print(f"largest difference {float((results['xformers'] - results['sdpa']).abs().max()):.1e}")


def pictures(ours: CTSRPipeline, sides: tuple[int, ...], device: torch.device) -> None:
    """Time and peak memory of whole calls, x4, the picture in the CPU's memory."""
    for side in sides:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        x = torch.rand(1, 3, side, side)
        seconds = median_seconds({"call": partial(ours, x, output_type="pt")}, 1, device)["call"]
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
        print(f"{side}x{side} -> {4 * side}x{4 * side}: {seconds:.2f} s, peak of the device {peak:.2f} GiB")


def compiled(runs: dict[str, Run]) -> dict[str, Run]:
    """The same by torch.compile."""
    compile: Any = torch.compile  # half of its types are unknown
    return {stage: compile(run) for stage, run in runs.items()}


@torch.no_grad()
def main(
    tiny: Annotated[bool, typer.Option(help="an eighth of the widths, small pictures")] = False,
    device: Annotated[str, typer.Option(help="auto: the GPU where there is one")] = "auto",
    dtype: DType = DType.bf16,
    side: Annotated[int, typer.Option(help="pixels of a tile")] = 512,
    repeat: int = 10,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile too")] = False,
    with_pictures: Annotated[bool, typer.Option("--pictures/--no-pictures")] = True,
) -> None:
    """Prints everything."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    where = torch.device(name)
    side = 128 if tiny else side
    kind = torch.cuda.get_device_name(where) if where.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    tflops = attained_tflops(where, DTYPES[dtype], 512 if where.type == "cpu" else 8192)
    print(f"{kind}, torch {torch.__version__}, {dtype.value}, tile {side}x{side}, product {tflops:.2f} TFLOP/s")
    stock, ours = build(tiny, DTYPES[dtype], where)
    runs, given = steps(stock, ours), inputs(side, DTYPES[dtype], where)
    differences(runs, given)
    if compile:
        runs["compiled"] = compiled(runs["ours"])
    print_split(runs, given, repeat, where, tflops)
    if not tiny and side == 512:
        print("stated TFLOP: " + ", ".join(f"{stage} {work}" for stage, work in ROOFLINE_TFLOP.items()))
    attention(ours, given["unet"], repeat, where)
    stock.clear()
    runs.clear()
    if with_pictures:
        pictures(ours, (32, 64) if tiny else PICTURES, where)


if __name__ == "__main__":
    typer.run(main)
