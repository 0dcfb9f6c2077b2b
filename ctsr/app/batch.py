"""A run over many pictures on a Ray cluster: `ctsr upscale` with an actor for each GPU or pair of processors.

Ray is needed for this alone: pip install "ctsr[ray]" on every node. Ray Data deals the jobs out, starts actors anew
where a node has died, gives their jobs to others, and takes nodes in that come later. What is finished is finished on
disk: a job that runs a second time, since its node died or the run was started again, finds its result and leaves it.
Paths must mean the same on all nodes, a common disk or an address that fsspec knows, such as s3://bucket/pictures.
"""

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain, count, islice
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from typing_extensions import Self, TypedDict

from ..addresses import fetch, file_system, is_address, send
from ..errors import CheckpointError, CTSRError
from ..images.read import readable_suffixes
from ..precision import Precision
from ..whole_file import whole_file
from .arguments import PER_SHARD, Into
from .claims import claim
from .finished import Recipe
from .jobs import Job, Naming, plan
from .lazy_pipeline import LazyPipeline
from .options import Options
from .run import EXPECTED, Outcome, State, attempt, describe_error
from .shards import SUFFIXES, Item, is_shard, read_record, read_shard, record_of, write_record, write_shard
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


class Line(TypedDict):
    """Of the manifest: what became of a picture, how long it took, and on which node."""

    source: str
    target: str
    state: State
    detail: str
    seconds: float
    node: str


class Row(TypedDict):
    """What is done at once: a picture into a picture, a shard into a shard or a folder, or pictures into a shard."""

    sources: list[str]
    target: str


def rows_of(inputs: Sequence[str], output: str, into: Into | None = None, per_shard: int = PER_SHARD) -> list[Row]:
    """What is made of what; paths are made absolute.

    Args:
        inputs: folders or addresses of pictures or shards, or single ones.
        output: folder or address.
        into: pictures, or shards of one kind; None is as they come.
        per_shard: so many pictures become a shard.

    Raises:
        ValueError: as `plan`, addresses among paths, or pictures and shards together.
    """
    inputs = [place if is_address(place) else str(Path(place).resolve()) for place in inputs]
    output = output.rstrip("/") if is_address(output) else str(Path(output).resolve())
    shards = [(path, name) for place in inputs for path, name in files_below(place, SUFFIXES)]
    if shards:
        if any(True for place in inputs for _ in files_below(place, tuple(readable_suffixes()))):
            raise ValueError(
                f"Shards and pictures lie together in {', '.join(inputs)}: give them in runs of their own."
            )
        suffix = {None: None, "pictures": ""}.get(into, f".{into}")
        names = [name if suffix is None else str(PurePosixPath(name).with_suffix(suffix)) for _, name in shards]
        return [Row(sources=[path], target=f"{output}/{name}") for (path, _), name in zip(shards, names, strict=True)]
    rows = picture_rows(inputs, output)
    if into in (None, "pictures"):
        return rows
    sources = [source for row in rows for source in row["sources"]]
    parts = [sources[first : first + per_shard] for first in range(0, len(sources), per_shard)]
    return [Row(sources=part, target=f"{output}/{number:06d}.{into}") for number, part in enumerate(parts)]


def picture_rows(inputs: Sequence[str], output: str) -> list[Row]:
    """Each picture into a picture; raises ValueError as `plan`."""
    if not any(is_address(place) for place in (*inputs, output)):
        jobs = plan([Path(place) for place in inputs], f"{output}{os.sep}", Naming())
        return [Row(sources=[str(job.source)], target=str(job.target)) for job in jobs]
    found = [pair for place in inputs for pair in files_below(place, tuple(readable_suffixes()))]
    if not found:
        raise ValueError(f"No pictures in {', '.join(inputs)}: name a folder with pictures.")
    names = ResultNames()
    return [Row(sources=[path], target=f"{output}/{names.of(name)}") for path, name in found]


def files_below(place: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Files of these suffixes below an address or path, and their names there; of a single file its own."""
    files, root = file_system(place)
    for path in sorted(files.find(root)):
        if path.lower().endswith(suffixes):
            name = PurePosixPath(path).name if path == root else PurePosixPath(os.path.relpath(path, root)).as_posix()
            yield files.unstrip_protocol(path) if is_address(place) else path, name


class Worker:
    """An actor: the model, and jobs one after the other.

    Args:
        task: what is made.
        cluster: what of the node it may use.
    """

    def __init__(self, task: Task, cluster: Cluster):
        torch.set_num_threads(cluster.cpus)
        device = torch.device("cuda" if cluster.gpus else "cpu")
        self.model = LazyPipeline(task.model, task.precision, device)
        self.options = self.model.settled(task.options)
        self.recipe = Recipe(self.model, self.options, task.overwrite)

    def __call__(self, row: Row) -> Iterator[Line]:
        """A line of the manifest for each picture of `row`; one for all of a shard that is there."""
        sources, target = [str(source) for source in row["sources"]], str(row["target"])
        if is_shard(target):
            yield from self.into_shard(sources, target)
        elif is_shard(sources[0]):
            yield from self.into_folder(sources[0], target)
        else:
            started = time.monotonic()
            yield line_of(sources[0], target, self.do(sources[0], target), started)

    def into_folder(self, source: str, target: str) -> Iterator[Line]:
        """The pictures of a shard, each as a file in a folder."""
        with tempfile.TemporaryDirectory(prefix="ctsr-") as name:
            names = ResultNames()
            for number, item in enumerate(self.items([source], Path(name))):
                started, own = time.monotonic(), Path(name, f"{number}{PurePosixPath(item.name).suffix}")
                own.write_bytes(item.data)
                place = f"{target}/{names.of(item.name)}"
                yield line_of(f"{source}::{item.name}", place, self.do(str(own), place), started)
                own.unlink()

    def into_shard(self, sources: Sequence[str], target: str) -> Iterator[Line]:
        """Pictures, or those of shards, as one shard; a finished one is left alone."""
        started, first = time.monotonic(), sources[0]
        with tempfile.TemporaryDirectory(prefix="ctsr-") as name, Places(target, Path(name)) as places:
            try:
                items = [*self.items(sources, Path(name))]
                settings = {**self.model.settings(self.options), "source": digest_of(items)}
                with claim(places.local, wait=True):
                    if (there := self.there(places.local, settings)) is not None:
                        yield line_of(first, target, there, started)
                        return
                    lines, made = self.make_items(items, first, target, Path(name))
                    write_shard(places.local, made)
                    write_record(places.local, settings, lines)
                places.give()
                yield from lines
            except CheckpointError:
                raise
            except EXPECTED as error:
                job = Job(Path(first), Path(target))
                yield line_of(first, target, Outcome(job, "failed", describe_error(error, job.source)), started)

    def make_items(self, items: Sequence[Item], source: str, target: str, room: Path) -> tuple[list[Line], list[Item]]:
        """Lines of all pictures, and the results of those that could be made."""
        lines, made, names = list[Line](), list[Item](), ResultNames()
        for number, item in enumerate(items):
            started, result = time.monotonic(), names.of(item.name)
            job = Job(room / f"{number}{PurePosixPath(item.name).suffix}", room / f"{number}-made.png")
            job.source.write_bytes(item.data)
            outcome = attempt(job, lambda x: upscale(x, self.model, self.options), None, wait=True)
            if outcome.state == "done":
                made.append(Item(result, job.target.read_bytes()))
                job.target.unlink()
            job.source.unlink()
            lines.append(line_of(f"{source}::{item.name}", f"{target}::{result}", outcome, started))
        return lines, made

    def there(self, target: Path, settings: Mapping[str, Any]) -> Outcome | None:
        """What becomes of a shard that is there already; None where it is to be made."""
        record = read_record(target)
        if record is None or self.recipe.is_replaced(record_of(target).stat()):
            return None
        job = Job(target, target)
        old, new = ({k: v for k, v in row.items() if k != "ctsr"} for row in (record["settings"], settings))
        if old == new:
            return Outcome(job, "skipped")
        return Outcome(job, "kept", f"{target} is there already, made otherwise")

    def items(self, sources: Sequence[str], room: Path) -> Iterator[Item]:
        """The pictures of shards, or pictures, in their order."""
        for source in sources:
            with Places(source, room / "in") as places:
                if is_shard(source):
                    yield from read_shard(places.local)
                else:
                    yield Item(PurePosixPath(source).name, places.local.read_bytes())

    def do(self, source: str, target: str) -> Outcome:
        """One job, through files of this node where its places are addresses."""
        if not (is_address(source) or is_address(target)):
            return self.make(Job(Path(source), Path(target)))
        with tempfile.TemporaryDirectory(prefix="ctsr-") as name:
            job = Job(Path(name, "in", Path(source).name), Path(name, "out", Path(target).name))
            fetch(source, job.source)
            fetch(target, job.target)
            outcome = self.make(job)
            if outcome.state == "done":
                send(job.target, target)
            return outcome

    def make(self, job: Job) -> Outcome:
        """One job on files of this node; waits for another that makes the same."""
        return attempt(job, lambda x: upscale(x, self.model, self.options), self.recipe.state_of, wait=True)


def line_of(source: str, target: str, outcome: Outcome, started: float) -> Line:
    """A line of the manifest."""
    seconds = round(time.monotonic() - started, 3)
    return Line(
        source=source,
        target=target,
        state=outcome.state,
        detail=outcome.detail,
        seconds=seconds,
        node=platform.node(),
    )


class ResultNames:
    """Names of the results of a shard's pictures: each once, and none that leads out of a folder."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def of(self, name: str) -> str:
        """NAME.png for NAME.jpg, and NAME.jpg.png where that is taken, or one with a number.

        Separators of either system count, so that no name of a foreign shard is a path elsewhere.
        """
        parts = [part for part in re.split(r"[/\\:]", name) if part not in ("", ".", "..")]
        whole = PurePosixPath(*parts) if parts else PurePosixPath("unnamed")
        more = (f"{whole}.{number}.png" for number in count(2))
        found = next(x for x in chain((f"{whole.with_suffix('.png')}", f"{whole}.png"), more) if x not in self.taken)
        self.taken.add(found)
        return found


def digest_of(items: Sequence[Item]) -> str:
    """Tells these pictures and names from all others."""
    made = hashlib.sha256()
    for item in items:
        made.update(f"{item.name} {len(item.data)} ".encode() + item.data)
    return made.hexdigest()[:16]


class Places:
    """A shard or picture on this node: itself, or a copy of what lies behind an address, with its record."""

    def __init__(self, place: str, room: Path):
        self.place, self.is_remote = place, is_address(place)
        self.local = room / "copy" / PurePosixPath(place).name if self.is_remote else Path(place)

    def __enter__(self) -> Self:
        if self.is_remote:
            for path, there in self.files():
                fetch(there, path)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_remote:
            shutil.rmtree(self.local.parent)

    def files(self) -> list[tuple[Path, str]]:
        """The file and its record, here and there."""
        return [(self.local, self.place), (record_of(self.local), f"{self.place}.json")]

    def give(self) -> None:
        """Copies both to the address; the record last."""
        for path, there in self.files() if self.is_remote else ():
            send(path, there)


def run_batch(rows: Sequence[Row], task: Task, cluster: Cluster) -> Iterator[Line]:
    """A line of the manifest for every job, as they are done.

    Raises:
        CTSRError: Ray is not installed, or the cluster cannot be reached.
        CheckpointError: the model cannot be loaded, which ends the run.
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
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong is raised, too
    blocks = min(len(rows), BLOCKS_PER_WORKER * cluster.workers)
    lines = data.from_items([*rows], override_num_blocks=blocks).flat_map(
        Worker,
        fn_constructor_args=(task, cluster),
        concurrency=(1, cluster.workers),
        num_cpus=cluster.cpus,
        num_gpus=cluster.gpus,
    )
    try:
        yield from lines.iter_rows()
    except CheckpointError as error:  # as Ray raises it, with the actor's traceback in its text
        raise getattr(error, "cause", error) from None
    finally:
        ray.shutdown()


def own_cpus(cluster: Cluster) -> int:
    """Processors that Ray on this machine has to think it has."""
    return max(cluster.workers * cluster.cpus, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def write_manifest(lines: Iterable[Line], folder: Path) -> Iterator[Line]:
    """Passes the lines on and writes them, as JSON, into manifest.jsonl, which appears as a whole at the end.

    What keeps the run from beginning is raised before the folder is made.
    """
    rest = iter(lines)
    first = list(islice(rest, 1))
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / MANIFEST) as partial, partial.open("w", encoding="utf-8") as file:
        for line in chain(first, rest):
            file.write(json.dumps(line) + "\n")
            file.flush()
            yield line
