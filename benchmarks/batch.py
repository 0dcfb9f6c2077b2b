"""`ctsr batch` on a Ray cluster of three nodes of this host, one of which is killed at a third, and one added.

    python -m benchmarks.batch --count 2000 --model TINY.safetensors

Every result must be there once, equal to the bits of a plain loop. Prints both times.
"""

import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image

from ctsr.app.batch import Cluster, Row, Task, rows_of, run_batch, write_manifest
from ctsr.app.jobs import Job
from ctsr.app.lazy_pipeline import LazyPipeline
from ctsr.app.options import Options
from ctsr.app.upscale import upscale


def pictures(folder: Path, count: int, side: int) -> None:
    """Noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"{number % 10}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(path)


def plain(jobs: list[Row], task: Task) -> None:
    """The loop."""
    model = LazyPipeline(task.model, task.precision, torch.device("cpu"))
    for row in jobs:
        job = Job(Path(row["sources"][0]), Path(row["target"]))
        job.target.parent.mkdir(parents=True, exist_ok=True)
        upscale(job, model, model.settled(task.options))


def on_cluster(jobs: list[Row], task: Task, out: Path) -> Counter[str]:
    """Three nodes; one is killed and one added on the way. States of the manifest's lines."""
    nodes: Any = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8}
    )
    others = [nodes.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    states: Counter[str] = Counter()
    try:
        lines = run_batch(jobs, task, Cluster(nodes.address, workers=3, cpus=1))
        for number, line in enumerate(write_manifest(lines, out)):
            states[line["state"]] += 1
            if number == len(jobs) // 3:
                nodes.remove_node(others[0], allow_graceful=False)
                nodes.add_node(num_cpus=1, object_store_memory=10**8)
    finally:
        nodes.shutdown()
    return states


def main(count: int = 2000, side: int = 16, model: str = "mini") -> None:
    """Runs both, and compares.

    Args:
        count: pictures.
        side: of each in px.
        model: as of `ctsr batch`.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures(folder / "in", count, side)
        task = Task(model, "fp32", Options())
        times: dict[str, float] = {}
        for kind in ("plain", "cluster"):
            jobs = rows_of([str(folder / "in")], str(folder / kind))
            started = time.monotonic()
            print(kind, plain(jobs, task) if kind == "plain" else dict(on_cluster(jobs, task, folder / kind)))
            times[kind] = time.monotonic() - started
        results = {path.relative_to(folder / "plain") for path in (folder / "plain").rglob("*.png")}
        again = {path.relative_to(folder / "cluster") for path in (folder / "cluster").rglob("*.png")}
        same = sum(
            (folder / "plain" / x).read_bytes() == (folder / "cluster" / x).read_bytes() for x in results & again
        )
        print(f"{len(results)} and {len(again)} results, {same} equal; seconds: {times}")


if __name__ == "__main__":
    tyro.cli(main)
