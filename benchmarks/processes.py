"""One stage in 1, 2 and 4 processes of this machine (gloo), which share the same samples: speed, and whether they learn
the same.

    python -m benchmarks.processes --photos PHOTOS

Each process has one thread. Steps are timed as the difference of a long and a short run, so that the start and the
validation at the end do not count. fp32; the weights after the long run are compared to those of one process, as a part
of the way that these moved since the short run: AdamW moves a weight whose gradient is rounding noise by a whole step.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file
from torch import Tensor

PROCESSES = (1, 2, 4)
BATCH = 8
SHORT, LONG = 2, 12


def train(photos: Path, out: Path, processes: int, steps: int) -> float:
    """Runs the stage; seconds."""
    config = "one_gpu" if processes == 1 else "eight_gpus"
    launch = f"accelerate.commands.launch --config_file training/accelerate/{config}.yaml --num_processes {processes}"
    stage = (
        f"-m training.stages.fidelity mini2 --start mini --run.steps {steps} --run.batch {BATCH // processes} "
        "--run.precision no --run.workers 0 --run.warm-up 0 --run.schedule constant --run.ema 0"
    )
    where = ["--data.photos", str(photos), "--run.out", str(out)]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", *launch.split(), *stage.split(), *where],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - started


def distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Euclidean, of all weights."""
    return sum(float((some[name].double() - others[name].double()).square().sum()) for name in some) ** 0.5


def main(photos: Path, repeats: int = 3) -> None:
    """Prints a line for each number of processes.

    Args:
        photos: folder of photographs; a few dozen are enough.
        repeats: of both runs, of which the median difference counts.
    """
    files: dict[tuple[int, int], dict[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in PROCESSES:
            times: list[float] = []
            for repeat in range(repeats):
                seconds: list[float] = []
                for steps in (SHORT, LONG):
                    out = Path(folder) / f"{processes}-{steps}-{repeat}"
                    seconds.append(train(photos, out, processes, steps))
                    files[processes, steps] = load_file(out / "model.safetensors")
                times.append((seconds[1] - seconds[0]) / (LONG - SHORT))
            rate = BATCH / float(torch.tensor(times).median())
            apart = distance(files[processes, LONG], files[1, LONG]) / distance(files[1, LONG], files[1, SHORT])
            print(f"{processes} processes: {rate:.2f} samples/s; weights apart by {apart:.1%} of their way", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
