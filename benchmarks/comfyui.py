"""The pack in a real ComfyUI, on its CPU: what starting costs, what a move of the dial saves, whether anything drifts.

    python -m benchmarks.comfyui start [--repeat 5]
    python -m benchmarks.comfyui dial [--repeat 7]
    python -m benchmarks.comfyui drift [--prompts 200]
    python -m benchmarks.comfyui mixed [--prompts 200]
    python -m benchmarks.comfyui batch [--few 4] [--many 16]

The host is found as the tests find it (tests/comfyui.py). Prompts are the graph of five nodes with the built-in mini.
"""

import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import typer

from tests.comfyui import ROOT, ComfyServer, Run, find_host
from tests.conftest import build_mini, build_sd
from tests.host.graphs import MINI, Prompt, fill, five, free, fresh, mixed, node, one, peak, put, succeed

PICTURES = ("hippo.png", "mural.jpg", "colosseum.jpg")
"""256x192 each."""
PROBE = ROOT / "tests" / "host" / "probe.py"
MIB = 2**20
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@contextmanager
def comfy(with_pack: bool = True, with_probe: bool = False, options: Sequence[str] = ()) -> Iterator[ComfyServer]:
    """A host with a base directory of its own, running; with the nodes of the tests, and options, where asked."""
    host = find_host()
    if host is None:
        raise typer.BadParameter("No ComfyUI found: set COMFYUI_PATH.")
    with (
        tempfile.TemporaryDirectory() as folder,
        ComfyServer(
            host, Path(folder) / "base", with_pack=with_pack, extra_nodes=[PROBE] * with_probe, options=options
        ) as server,
    ):
        yield server


def process(server: ComfyServer) -> psutil.Process:
    """The host's."""
    assert server.process is not None
    return psutil.Process(server.process.pid)


def resident(server: ComfyServer) -> float:
    """MiB of the host's process."""
    return process(server).memory_info().rss / MIB


def timed(server: ComfyServer, prompt: Prompt) -> tuple[float, Run]:
    """Seconds from queueing a prompt to its end, and what it did."""
    start = time.perf_counter()
    run = succeed(server, prompt)
    return time.perf_counter() - start, run


@app.command()
def start(repeat: int = 5) -> None:
    """What starting takes with and without the pack, taking turns, and the host's own import time of it."""
    starts: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    imports: list[float] = []
    for turn in range(repeat):
        for with_pack in (False, True) if turn % 2 else (True, False):
            begin = time.perf_counter()
            with comfy(with_pack) as server:
                wall, used = time.perf_counter() - begin, process(server).cpu_times()
                starts[with_pack].append((wall, used.user + used.system, resident(server)))
                imports += [
                    float(x) for x in re.findall(rf"([\d.]+) seconds: {re.escape(str(server.pack))}", server.log)
                ]
    for with_pack, figures in starts.items():
        columns = list(zip(*figures, strict=True))
        wall, busy, memory = (statistics.median(column) for column in columns)
        name = "with the pack" if with_pack else "without"
        print(f"{name:14s} {wall:.2f} s, {busy:.2f} s of processor time, {memory:.0f} MiB (medians), ", end="")
        print(f"least {min(columns[0]):.2f} s, {min(columns[1]):.2f} s")
    print(f"the host's import time of the pack: {statistics.median(imports):.1f} s median, {max(imports):.1f} s most")


@app.command()
def dial(repeat: int = 7, scale: float = 4.0) -> None:
    """A move of the dial against a full run, medians."""
    with comfy() as server:
        prompt = five(PICTURES[0], MINI, scale=scale)
        timed(server, prompt)  # loads the model
        full: list[float] = []
        moved: list[float] = []
        for i in range(repeat):
            full.append(timed(server, fresh(prompt))[0])
            prompt["dial"]["inputs"]["t"] = i / repeat
            seconds, run = timed(server, prompt)
            assert run.executed == ["dial", "decode", "save"]
            moved.append(seconds)
    whole, part = statistics.median(full), statistics.median(moved)
    print(f"256x192, scale {scale:g}: full {whole:.2f} s, dial {part:.2f} s ({part / whole:.0%})")


@app.command()
def drift(prompts: int = 200, scale: float = 2.0) -> None:
    """Time and memory over many prompts of which nothing but the model is cached."""
    window = max(1, prompts // 4)
    seconds: list[float] = []
    with comfy() as server:
        timed(server, five(PICTURES[0], MINI, scale=scale))
        for i in range(prompts):
            taken, run = timed(server, fresh(five(PICTURES[i % 3], MINI, t=i % 11 / 10, scale=scale)))
            assert {"encode", "unet", "dial", "decode"} <= set(run.executed)
            seconds.append(taken)
            if (i + 1) % window == 0:
                middle = statistics.median(seconds[-window:])
                print(
                    f"prompts {i + 2 - window} to {i + 1}: {middle:.2f} s median, {resident(server):.0f} MiB",
                    flush=True,
                )


@app.command(name="mixed")
def mixed_prompts(prompts: int = 200, warm: int = 12) -> None:
    """Memory over many prompts of three models that take turns, and after `/free`."""
    with comfy(with_probe=True) as server:
        fill(server, build_mini(), build_sd())
        for i in range(warm):
            succeed(server, mixed(i))
        free(server)
        print(f"at the start: {resident(server):.0f} MiB", flush=True)
        for i in range(prompts):
            succeed(server, mixed(i))
            if (i + 1) % (prompts // 4) == 0:
                print(f"after {i + 1} prompts: {resident(server):.0f} MiB", flush=True)
        free(server)
        print(f"after /free: {resident(server):.0f} MiB", flush=True)


@app.command()
def batch(few: int = 4, many: int = 16, side: int = 256) -> None:
    """Memory for each further picture of a batch, in results: graph of single nodes and the one node, cached or not."""
    size, light = 4 * side, np.linspace(0.2, 0.8, many, dtype=np.float32)
    pictures = np.broadcast_to(light[:, None, None, None], (many, side, side, 3))
    for options in ((), ("--cache-none",)):
        with comfy(with_probe=True, options=options) as server:
            for name, graph, end in (("single nodes", five, "decode"), ("one node", one, "upscale")):
                rises: list[int] = []
                for count in (few, few, many):  # the first loads the model
                    prompt = {**graph(checkpoint=MINI), "picture": put(server, np.ascontiguousarray(pictures[:count]))}
                    prompt["save"] = node("ProbeSize", value=[end, 0])
                    rises.append(peak(server, prompt))
                further = (rises[2] - rises[1]) / (many - few) / (size * size * 3 * 4)
                print(f"{' '.join(options) or 'cached'}: {name}: {further:.2f} results a further picture", flush=True)


if __name__ == "__main__":
    app()
