"""How fast a device runs the networks: measured once, in seconds, and kept in the user's cache."""

import contextlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from ..models.forward import latent_channels
from ..tiling.network import Network, Stage

_flop_counter: Any = flop_counter  # its functions have half of their types
CPU_ATTENTION: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FIRST_SIDE, LAST_SIDE = 64, 512
"""Pixels of the result a side: the smallest and the largest run that is measured."""
A_WEIGHT = 40
"""Operations a weight from which on a run tells something: below, reading the weights takes most of its time."""
ENOUGH = 0.125
"""Seconds from which on a run can be told: larger sides are tried until one takes as long."""
MOST_START = 0.5
"""Share of a run that may be its start: two times that hardly differ would say that size costs nothing."""
REPEATS = 3
"""The fastest of these counts."""


@dataclass(frozen=True)
class Speed:
    """Of one network on one device.

    Attributes:
        network: what was measured.
        start: seconds that a run of any size takes, reading the weights.
        rate: floating-point operations a second beside that.
    """

    network: Network
    start: float
    rate: float

    def seconds(self, height: int, width: int) -> float:
        """Of one run over height x width latents."""
        return self.start + operations(self.network, height, width) / self.rate


def operations(network: Network, height: int, width: int) -> float:
    """Floating-point operations of a network over height x width latents, counted without doing them.

    Those of one without attention grow with the area; they are counted once, for a square.
    """
    if network.attends:
        return count(Key(network), height, width)
    side = FIRST_SIDE // network.factor
    return count(Key(network), side, side) * (height * width) / side**2


class Key:
    """A network as a key of a cache: the same module in the same stage is the same network."""

    def __init__(self, network: Network):
        self.network = network

    def __hash__(self) -> int:
        return hash((id(self.network.module), self.network.stage))

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Key) and other.network.module is self.network.module
        return same and cast(Key, other).network.stage == self.network.stage


@lru_cache(maxsize=64)
def count(key: Key, height: int, width: int) -> float:
    """Operations of one run, from fake tensors."""
    network = key.network
    counter = FlopCounterMode(display=False, custom_mapping={CPU_ATTENTION: attention_operations})
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), counter:
        network.call(make_input(network, height, width))
    return float(max(1, counter.get_total_flops()))


def attention_operations(
    query: torch.Size, key: torch.Size, value: torch.Size, *others: object, out_shape: object = None, **options: object
) -> int:
    """Operations of attention by the shapes that go in: torch counts them on a GPU alone."""
    return int(_flop_counter.sdpa_flop_count(query, key, value))


def make_input(network: Network, height: int, width: int) -> torch.Tensor:
    """Zeros that a network takes, on its device and in its precision."""
    module: Any = network.module
    if network.stage == "encode":
        channels = 3
    else:
        channels = module.config["in_channels"] if network.stage == "unet" else latent_channels(module)
    first = next(network.module.parameters())
    size = (height * network.read_scale, width * network.read_scale)
    return torch.zeros(1, channels, *size, dtype=first.dtype, device=first.device)


def measure(network: Network, clock: Callable[[], float] = time.perf_counter) -> Speed:
    """Runs a network on zeros over two sides, one twice the other, large enough to tell."""
    cells = FIRST_SIDE // network.factor
    weights = sum(parameter.numel() for parameter in network.module.parameters())
    while operations(network, cells, cells) < A_WEIGHT * weights and 2 * cells * network.factor < LAST_SIDE:
        cells *= 2
    network.call(make_input(network, cells, cells))  # the first run also fetches the weights
    smaller, larger = fastest(network, cells, clock), fastest(network, 2 * cells, clock)
    while larger < ENOUGH and 2 * cells * network.factor < LAST_SIDE:
        cells *= 2
        smaller, larger = larger, fastest(network, 2 * cells, clock)
    few, many = operations(network, cells, cells), operations(network, 2 * cells, 2 * cells)
    start = larger - (larger - smaller) / (many - few) * many
    start = min(max(start, 0.0), MOST_START * larger)
    return Speed(network, start, many / max(larger - start, 1e-6))


@torch.no_grad()
def fastest(network: Network, cells: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a few runs over cells x cells latents; of one, where that takes long."""
    x, times = make_input(network, cells, cells), list[float]()
    for _ in range(REPEATS):
        start = clock()
        network.call(x)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)
        times.append(clock() - start)
        if times[-1] > 4 * ENOUGH:
            break
    return min(times)


def speeds(each: list[Network]) -> dict[Stage, Speed]:
    """Of all networks: from the cache where it has this device, these shapes and this precision, else measured."""
    path = cache_file()
    known, found, new = read(path), dict[Stage, Speed](), False
    for network in each:
        key = describe(network)
        if key not in known:
            speed = measure(network)
            known[key], new = (speed.start, speed.rate), True
        found[network.stage] = Speed(network, *known[key])
    if new:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
            partial.replace(path)
    return found


def read(path: Path) -> dict[str, tuple[float, float]]:
    """Start and rate by a network's description; what another version or a crash left there is measured anew."""
    entries: Any = {}
    known = dict[str, tuple[float, float]]()
    with contextlib.suppress(OSError, ValueError):
        entries = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(entries, dict):
        return known
    for key, entry in cast(dict[str, Any], entries).items():
        with contextlib.suppress(ValueError, TypeError):
            start, rate = (float(number) for number in entry)
            if 0 <= start < math.inf and 0 < rate < math.inf:
                known[key] = start, rate
    return known


def describe(network: Network) -> str:
    """What a speed depends on, in one line."""
    first = next(network.module.parameters())
    threads = f"{torch.get_num_threads()} threads" if first.device.type == "cpu" else ""
    name = torch.cuda.get_device_name(first.device) if first.device.type == "cuda" else processor()
    weights = sum(parameter.numel() for parameter in network.module.parameters())
    kind = f"{type(network.module).__name__} {weights} {first.dtype}"
    return " | ".join((network.stage, kind, name, threads, torch.__version__))


def processor() -> str:
    """Its name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def cache_file() -> Path:
    """Where speeds are kept: CTSR_CACHE, else the user's cache folder."""
    if folder := os.environ.get("CTSR_CACHE"):
        return Path(folder) / "speed.json"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "ctsr" / "speed.json"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/ctsr/speed.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctsr" / "speed.json"
