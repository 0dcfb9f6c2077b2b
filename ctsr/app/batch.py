"""A run over many pictures on a Ray cluster: `ctsr upscale` with an actor for each GPU or pair of processors.

Ray is needed for this alone: pip install "ctsr[ray]" on every node. Ray Data deals the jobs out, starts actors anew
where a node has died, gives their jobs to others, and takes nodes in that come later. What is finished is finished on
disk: a job that runs a second time, since its node died or the run was started again, finds its result and leaves it.
Paths must mean the same on all nodes, a common disk or an address that fsspec knows, such as s3://bucket/pictures.
"""

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import CTSRError
from ..images.read import readable_suffixes
from ..precision import Precision
from ..whole_file import whole_file
from .finished import Finished
from .jobs import Job, Naming, plan
from .lazy_pipeline import LazyPipeline
from .options import Options
from .run import Outcome, attempt
from .upscale import upscale

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
BLOCKS_PER_WORKER = 8
"""Parts that the jobs are dealt out in: what a node that dies has to give back is a part of each of its actors."""


@dataclass(frozen=True)
class Cluster:
    """What the run may use.

    Attributes:
        address: of a Ray cluster, "auto" for the one that this machine is a node of; None starts Ray on this machine.
        workers: most actors.
        cpus: processors of each, and threads that it computes with.
        gpus: of each: 1, or 0 for the CPU.
    """

    address: str | None = None
    workers: int = 1
    cpus: int = 2
    gpus: int = 0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 1 or self.gpus not in (0, 1):
            raise ValueError("A cluster needs 1 or more workers of 1 or more processors, and 0 or 1 GPU each.")


@dataclass(frozen=True)
class Task:
    """What is made of every picture: model by name or path, precision, options, and whether results are replaced."""

    model: str
    precision: Precision
    options: Options
    overwrite: bool = False


def is_address(place: str) -> bool:
    """Whether it is a place that fsspec knows, not a path."""
    return "://" in place


def jobs_of(inputs: Sequence[str], output: str) -> list[tuple[str, str]]:
    """Source and target of each picture; paths are made absolute.

    Raises:
        ValueError: as `plan`, or addresses among paths.
    """
    if not any(is_address(place) for place in (*inputs, output)):
        paths = [Path(place).resolve() for place in inputs]
        jobs = plan(paths, f"{Path(output).resolve()}{os.sep}", Naming())
        return [(str(job.source), str(job.target)) for job in jobs]
    found = [pair for place in inputs for pair in remote_jobs(place, output)]
    if not found:
        raise ValueError(f"No pictures in {', '.join(inputs)}: name a folder with pictures.")
    return found


def remote_jobs(place: str, output: str) -> Iterator[tuple[str, str]]:
    """Pictures below an address or path, by their names below `output`, as PNG."""
    files, root = filesystem(place)
    for path in sorted(files.find(root)):
        if Path(path).suffix.lower() in readable_suffixes():
            name = Path(os.path.relpath(path, root)).with_suffix(".png").as_posix()
            yield files.unstrip_protocol(path), f"{output.rstrip('/')}/{name}"


def filesystem(place: str) -> tuple[Any, str]:
    """fsspec's file system of an address or path, and the path in it."""
    return cast("tuple[Any, str]", import_module("fsspec").core.url_to_fs(place))


class Worker:
    """An actor: the model, and jobs one after the other.

    Args:
        task: what is made.
        cluster: what of the node it may use.
    """

    def __init__(self, task: Task, cluster: Cluster):
        torch.set_num_threads(cluster.cpus)
        device = torch.device("cuda" if cluster.gpus else "cpu")
        self.model, self.options = LazyPipeline(task.model, task.precision, device), task.options
        self.found = Finished(self.model, task.options, task.overwrite)

    def __call__(self, row: dict[str, str]) -> dict[str, str | float]:
        """A line of the manifest for the job of `row`."""
        started = time.monotonic()
        outcome = self.do(row["source"], row["target"])
        return {
            **row,
            "state": outcome.state,
            "detail": outcome.detail,
            "seconds": round(time.monotonic() - started, 3),
            "node": platform.node(),
        }

    def do(self, source: str, target: str) -> Outcome:
        """One job, through files of this node where its places are addresses."""
        if not (is_address(source) or is_address(target)):
            return self.make(Job(Path(source), Path(target)))
        with tempfile.TemporaryDirectory(prefix="ctsr-") as name:
            job = Job(Path(name, "in", Path(source).name), Path(name, "out", Path(target).name))
            for place, path in ((source, job.source), (target, job.target)):
                path.parent.mkdir()
                files, inner = filesystem(place)
                if files.exists(inner):
                    files.get(inner, str(path))
            outcome = self.make(job)
            if outcome.state == "done":
                files, inner = filesystem(target)
                files.makedirs(os.path.dirname(inner), exist_ok=True)
                files.put(str(job.target), inner)
            return outcome

    def make(self, job: Job) -> Outcome:
        """One job on files of this node; waits for another that makes the same."""
        outcome = attempt(job, lambda x: upscale(x, self.model, self.options), self.found, wait=True)
        return cast(Outcome, outcome)


def run_batch(jobs: Sequence[tuple[str, str]], task: Task, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """A line of the manifest for every job, as they are done.

    Raises:
        CTSRError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        ray, data = import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise CTSRError(f'`ctsr batch` needs Ray ({error}): pip install "ctsr[ray]".') from error
    options: dict[str, Any] = {"address": cluster.address} if cluster.address else {"num_cpus": own_cpus(cluster)}
    try:
        ray.init(**options, log_to_driver=False, ignore_reinit_error=True, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CTSRError(f"No Ray cluster at {cluster.address}: start one, or leave --cluster out ({error}).") from error
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"source": source, "target": target} for source, target in jobs]
    blocks = min(len(rows), BLOCKS_PER_WORKER * cluster.workers)
    lines = data.from_items(rows, override_num_blocks=blocks).map(
        Worker,
        fn_constructor_args=(task, cluster),
        concurrency=(1, cluster.workers),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
    )
    try:
        yield from lines.iter_rows()
    finally:
        ray.shutdown()


def own_cpus(cluster: Cluster) -> int:
    """Processors that Ray on this machine has to think it has."""
    return max(cluster.workers * cluster.cpus, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def write_manifest(lines: Iterable[dict[str, Any]], folder: Path) -> Iterator[dict[str, Any]]:
    """Passes the lines on and writes them, as JSON, into manifest.jsonl, which appears as a whole at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / MANIFEST) as partial, partial.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            file.flush()
            yield line
