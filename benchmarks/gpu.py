"""SD 2.1-size networks with random weights: our path against stock eager diffusers modules, on a GPU in one go.

    python -m benchmarks.gpu                                everything, bf16, on the GPU
    python -m benchmarks.gpu --compile reduce-overhead      and the pipeline compiled, with CUDA graphs
    python -m benchmarks.gpu --tiny                         the same at tiny size, to see that it runs, also on a CPU
    python -m benchmarks.gpu --device cpu --dtype fp32 --repeat 3 --batch 1 --no-pictures    on a CPU

Ours is the pipeline's networks: channels-last, the decoder doubling by phases, GroupNorm and attention as the pipeline
has them. All have the same weights and take turns; medians. Where time can go, by stage, for the stock modules: counted
arithmetic over what one large matrix product attains, counted bytes over what one large copy attains, and the number of
operators, each of which is a launch at least.
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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import narrow
from ctsr import CTSRPipeline, PromptEmbeddings
from ctsr.models.building import make_fast
from ctsr.tiling import networks
from ctsr.tiling.network import MOST_TILES
from training.model.sd21 import SD21_UNET, SD21_VAE

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


def attained_bandwidth(device: torch.device, megabytes: int) -> float:
    """Bytes a second, read and written, of one large copy."""
    a = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * a.numel() / median_seconds({"copy": lambda: b.copy_(a)}, 5, device)["copy"]


class Traffic(TorchDispatchMode):
    """Counts operators that are no views, and the bytes of the tensors that they take and give."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        if not func.is_view and torch.Tag.inplace_view not in func.tags:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            self.operators += 1
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return result


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
    ours = CTSRPipeline(make_fast(copy.deepcopy(vae)), make_fast(copy.deepcopy(unet)), prompt, family="osediff")
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
            "unet": lambda z: unet(z, TIMESTEP, encoder_hidden_states=embeds.expand(len(z), -1, -1)).sample,
            "decode": lambda z: vae.decode(z).sample,
        },
        "ours": {
            "encode": networks.encoder(ours.vae, None).call,
            "unet": networks.unet(ours.unet, ours.vae_scale_factor, TIMESTEP, embeds).call,
            "decode": networks.decoder(ours.vae).call,
        },
    }


def inputs(tiles: int, side: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """What each step is given, for so many results of side x side pixels."""
    z = torch.randn(tiles, 4, side // 8, side // 8, device=device).to(dtype)
    x = torch.rand(tiles, 3, side, side, device=device).to(dtype) * 2 - 1
    return {"encode": x, "unet": z, "decode": z}


def print_floors(run: dict[str, Run], given: dict[str, Tensor], device: torch.device, tflops: float) -> float:
    """Where the time of each stage can go; the arithmetic's seconds of all together."""
    bandwidth = attained_bandwidth(device, 64 if device.type == "cpu" else 1024)
    print(f"copy {bandwidth / 1e9:.0f} GB/s")
    print(f"{'':8s}{'TFLOP':>10s}{'arithmetic':>14s}{'GB':>10s}{'bytes':>14s}{'operators':>12s}")
    total = 0.0
    for stage in STAGES:
        with FlopCounterMode(display=False) as counter, Traffic() as traffic:
            run[stage](given[stage])
        work = counter.get_total_flops() / 1e12
        total += work / tflops
        times = 1e3 * work / tflops, 1e3 * traffic.bytes / bandwidth
        print(
            f"{stage:8s}{work:>10.3f}{times[0]:>11.1f} ms{traffic.bytes / 1e9:>10.2f}{times[1]:>11.1f} ms"
            f"{traffic.operators:>12d}"
        )
    return total


def print_split(runs: Runs, given: dict[str, Tensor], repeat: int, device: torch.device, floor: float) -> None:
    """Seconds a tile of each stage by each path; `floor` is the arithmetic's of all stages."""
    print(f"{'':8s}" + "".join(f"{name:>18s}" for name in runs))
    totals: dict[str, float] = defaultdict(float)
    for stage in STAGES:
        calls = {name: partial(of[stage], given[stage]) for name, of in runs.items()}
        seconds = median_seconds(calls, repeat, device)
        tiles = len(given[stage])
        for name, value in seconds.items():
            totals[name] += value / tiles
        print(f"{stage:8s}" + "".join(f"{1e3 * seconds[name] / tiles:>15.1f} ms" for name in runs))
    print(f"{'all':8s}" + "".join(f"{1e3 * totals[name]:>15.1f} ms" for name in runs))
    for name in runs:
        print(f"{name}: {totals['stock'] / totals[name]:.2f} times stock's speed, {totals[name] / floor:.2f} floors")


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
    run = networks.unet(ours.unet, ours.vae_scale_factor, TIMESTEP, ours.prompt_embeddings(1)).call
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


def compiled(stock: dict[str, nn.Module], ours: CTSRPipeline, mode: str) -> dict[str, Run]:
    """Those of a compiled copy of the pipeline."""
    fast = copy.deepcopy(ours)
    fast.compile(mode=mode)
    return steps(stock, fast)["ours"]


@torch.no_grad()
def main(
    tiny: Annotated[bool, typer.Option(help="an eighth of the widths, small pictures")] = False,
    device: Annotated[str, typer.Option(help="auto: the GPU where there is one")] = "auto",
    dtype: DType = DType.bf16,
    side: Annotated[int, typer.Option(help="pixels of a tile")] = 512,
    repeat: int = 10,
    batch: Annotated[int, typer.Option(help="tiles at once, in a second table")] = MOST_TILES,
    compile: Annotated[str, typer.Option(help="mode of torch.compile, to measure that too: reduce-overhead")] = "",
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
    runs, given = steps(stock, ours), inputs(1, side, DTYPES[dtype], where)
    differences(runs, given)
    floor = print_floors(runs["stock"], given, where, tflops)
    if not tiny and side == 512:
        print("stated TFLOP: " + ", ".join(f"{stage} {work}" for stage, work in ROOFLINE_TFLOP.items()))
    if compile:
        runs["compiled"] = compiled(stock, ours, compile)
    print_split(runs, given, repeat, where, floor)
    if batch > 1:
        print(f"{batch} tiles at once, a tile")
        print_split(runs, inputs(batch, side, DTYPES[dtype], where), repeat, where, floor)
    attention(ours, given["unet"], repeat, where)
    stock.clear()
    runs.clear()
    if with_pictures:
        pictures(ours, (32, 64) if tiny else PICTURES, where)


if __name__ == "__main__":
    typer.run(main)
