"""Folders of many pictures: listing ten thousand, memory while they pass, and two processes against one.

    python -m benchmarks.folders            # all of it, in a temporary folder; minutes
    python -m benchmarks.folders --listing  # without the hundred pictures

Listing is `plan` and the look for what is finished, without a model. Memory is what the process holds while ten
thousand jobs that only copy their file pass through the same run, claims and outcomes as upscaling does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from PIL import Image

from ctsr.app.claims import remove_leftovers
from ctsr.app.finished import Recipe
from ctsr.app.jobs import Job, plan
from ctsr.app.lazy_pipeline import LazyPipeline
from ctsr.app.options import Options
from ctsr.app.run import run

MANY = 10_000


def noise(path: Path, side: int, seed: int) -> None:
    """A picture."""
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)


def ten_thousand(folder: Path) -> None:
    """Small files in a hundred folders."""
    for index in range(MANY):
        target = folder / f"{index % 100:02d}" / f"{index}.{('png', 'jpg')[index % 2]}"
        target.parent.mkdir(parents=True, exist_ok=True)
        noise(target, 8, index)


def time_listing(folder: Path, out: Path) -> list[Job]:
    """Prints how long it takes to know what is to do."""
    began = time.perf_counter()
    jobs = plan([folder], str(out))
    planned = time.perf_counter()
    recipe = Recipe(LazyPipeline("mini", "fp32", torch.device("cpu")), Options())
    remove_leftovers({job.target.parent for job in jobs})
    states = [recipe.state_of(job)[0] for job in jobs]
    print(f"listing {len(jobs)} files: {planned - began:.2f} s; state of each: {time.perf_counter() - planned:.2f} s")
    assert set(states) == {"absent"}
    return jobs


def watch_memory(jobs: list[Job], out: Path) -> None:
    """Prints the memory of this process at every tenth of the jobs."""
    recipe = Recipe(LazyPipeline("mini", "fp32", torch.device("cpu")), Options())
    process, held, began = psutil.Process(), list[float](), time.perf_counter()

    def copy(job: Job) -> str:
        shutil.copyfile(job.source, job.target)
        return ""

    for index, _ in enumerate(run(jobs, copy, recipe.state_of)):
        if index % (MANY // 10) == MANY // 10 - 1:
            held.append(process.memory_info().rss / 2**20)
    seconds = time.perf_counter() - began
    print(f"memory at each tenth, MiB: {', '.join(f'{value:.0f}' for value in held)}; {seconds:.1f} s for all")
    shutil.rmtree(out)


def one_against_two(folder: Path, pictures: int, side: int) -> None:
    """Prints wall time of the command line with one process and with two."""
    source = folder / "hundred"
    source.mkdir()
    for index in range(pictures):
        noise(source / f"{index}.png", side, index)
    for processes in (1, 2):
        out = folder / f"out{processes}"
        command = [
            sys.executable,
            "-m",
            "ctsr",
            "upscale",
            source,
            "-o",
            out,
            "--jobs",
            processes,
            "--precision",
            "fp32",
        ]
        began = time.perf_counter()
        subprocess.run([str(part) for part in command], check=True, stderr=subprocess.DEVNULL)
        seconds, load = time.perf_counter() - began, os.getloadavg()[0]
        print(f"{pictures} pictures of {side}x{side}, --jobs {processes}: {seconds:.1f} s (load {load:.1f})")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listing", action="store_true")
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--side", type=int, default=96)
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        ten_thousand(folder / "many")
        watch_memory(time_listing(folder / "many", folder / "out"), folder / "out")
        if not arguments.listing:
            one_against_two(folder, arguments.pictures, arguments.side)


if __name__ == "__main__":
    main()
