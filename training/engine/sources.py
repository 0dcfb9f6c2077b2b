"""Where batches come from: samples made by number, or shards."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.engine.run import Run

Sample = dict[str, Tensor]
MakeSample = Callable[[int], Sample]


class Source(Protocol):
    """Batches of a run."""

    def batches(
        self, run: Run, start: int, latest_shards: Mapping[int, int], rank: int, world: int
    ) -> Iterator[Sample]:
        """From step `start` on, for process `rank` of `world`; samples carry `index`, their number."""
        ...

    def on_device(self, batch: Sample, device: torch.device) -> Sample:
        """The batch on the device that trains."""
        ...

    def note_shards(self, batch: Sample) -> Mapping[int, int]:
        """Notes the shards of a batch; the latest of each consumer so far, empty for samples made by number."""
        ...


class Samples(Dataset[Sample]):
    """Sample `i` is `make(i)`: a pure function of its number, so a resumed run sees what an unbroken one would."""

    def __init__(self, make: MakeSample):
        self.make = make

    def __getitem__(self, index: int) -> Sample:
        return {"index": torch.tensor(index), **self.make(index)}


class Numbers:
    """The sample numbers of one process: with more processes, the same numbers dealt out.

    A step of N processes sees the samples of a step of one process with N times the batch.
    """

    def __init__(self, run: Run, start: int, rank: int, world: int):
        self.run, self.start, self.rank, self.world = run, start, rank, world

    def __len__(self) -> int:
        return (self.run.steps - self.start) * self.run.accumulation * self.run.batch

    def __iter__(self) -> Iterator[int]:
        batch = self.run.batch
        for number in range(self.start * self.run.accumulation, self.run.steps * self.run.accumulation):
            first = (number * self.world + self.rank) * batch
            yield from range(first, first + batch)


def leave_sigterm_to_the_main_process(worker: int) -> None:
    """It goes to the whole process group; the main process wants to finish its step and save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)  # of the main process, see `sigterm`
    torch.set_num_threads(1)


def load_ahead(samples: Dataset[Sample], run: Run, sampler: Numbers | None = None) -> Iterator[Sample]:
    """Batches [B, ...] of `samples`, made ahead by worker processes; `sampler` gives the numbers of a map dataset."""
    # The photographs are shared by forking; where a system (Windows) cannot, batches are made in this process.
    workers = run.workers if "fork" in multiprocessing.get_all_start_methods() else 0
    loader = DataLoader(
        samples,
        batch_size=run.batch,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        worker_init_fn=leave_sigterm_to_the_main_process,
    )
    return iter(loader)


def to_device(batch: Sample, device: torch.device) -> Sample:
    """The batch, moved."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


@dataclass(frozen=True)
class ByNumber:
    """Samples made by worker processes, or, with `finish`, made on the device from their numbers.

    Attributes:
        make: sample by number.
        finish: what is done with a batch on the device, such as degrading photographs that lie in its memory.
    """

    make: MakeSample
    finish: Callable[[Sample], Sample] | None = None

    def batches(
        self, run: Run, start: int, latest_shards: Mapping[int, int], rank: int, world: int
    ) -> Iterator[Sample]:
        """See `Source`."""
        return load_ahead(Samples(self.make), run, Numbers(run, start, rank, world))

    def on_device(self, batch: Sample, device: torch.device) -> Sample:
        """See `Source`."""
        batch = to_device(batch, device)
        return self.finish(batch) if self.finish else batch

    def note_shards(self, batch: Sample) -> Mapping[int, int]:
        """See `Source`."""
        return {}
