"""A run by several processes: one or more for each device, each with its own copy of the model.

This process hands out the jobs one by one and hears what became of them; warnings of the others come by a queue.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler, QueueListener
from types import FrameType
from typing import Any

import torch

from .console import share_done
from .finished import Recipe
from .jobs import Job
from .run import Outcome, attempt
from .upscale import upscale

LIBRARY = str(__package__).split(".")[0]
REFRESH = 0.3  # seconds between two looks at how far the processes are


@dataclass(frozen=True)
class Start:
    """What each process begins with.

    Attributes:
        recipe: its model is of the first device.
        places: a queue of numbers and devices; every process takes one of each.
        shares: by number, how much of its present picture a process has done.
        messages: a queue for warnings.
        stop: an event that is set when all shall end.
        threads: of torch on a CPU.
    """

    recipe: Recipe
    places: Any
    shares: Any
    messages: Any
    stop: Any
    threads: int


_own: Start | None = None
_number = 0


def run_parallel(
    jobs: Sequence[Job],
    recipe: Recipe,
    devices: Sequence[torch.device],
    tell: Callable[[float], None] = lambda pictures: None,
) -> Iterator[Outcome]:
    """As `run.run` over `upscale`, by a process for each of the devices, which may be named several times.

    Args:
        jobs: see `run.run`.
        recipe: of all pictures.
        devices: of the processes.
        tell: hears several times a second how much work is done on pictures that are not finished yet, in pictures.

    Raises:
        CheckpointError: the model cannot be loaded.
        KeyboardInterrupt: Ctrl-C, after the processes have stopped.
    """
    context = multiprocessing.get_context("spawn")
    threads, shares = max(1, torch.get_num_threads() // len(devices)), context.Array("d", len(devices))
    start = Start(recipe, context.Queue(), shares, context.Queue(), context.Event(), threads)
    for place in enumerate(devices):
        start.places.put(place)
    listener = QueueListener(start.messages, _Relay())
    listener.start()
    pool = ProcessPoolExecutor(len(devices), context, _begin, (start,))
    try:
        with _noted_ctrl_c() as pressed:

            def look() -> None:
                if pressed.is_set():
                    raise KeyboardInterrupt
                tell(float(sum(shares[:])))

            yield from _outcomes(pool, jobs, 2 * len(devices), look)
    finally:
        start.stop.set()
        pool.shutdown(cancel_futures=True)
        listener.stop()


def _outcomes(
    pool: ProcessPoolExecutor, jobs: Sequence[Job], ahead: int, look: Callable[[], None]
) -> Iterator[Outcome]:
    """Of all jobs, those that another run has claimed last; at most so many are handed out ahead; looks meanwhile."""
    claimed: list[Job] = []
    for wait_for_others, some in ((False, iter(jobs)), (True, iter(claimed))):
        pending: dict[Future[Outcome | None], Job] = {}
        while True:
            while len(pending) < ahead and (job := next(some, None)) is not None:
                with _without_ctrl_c():
                    pending[pool.submit(_attempt, job, wait_for_others)] = job
            if not pending:
                break
            look()
            while not (done := wait(pending, REFRESH, FIRST_COMPLETED).done):
                look()
            for future in done:
                job = pending.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    why = f"{job.source}: its process was killed, as the system does when memory runs out; use fewer."
                    yield Outcome(job, "failed", why, ends_run=True)
                    return
                if outcome is None:
                    claimed.append(job)
                    continue
                yield outcome
                if outcome.ends_run:
                    return


@contextmanager
def _noted_ctrl_c() -> Generator[threading.Event, None, None]:
    """Inside, Ctrl-C sets the event: an exception could come where nobody hears it, as in a destructor."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        pressed.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _without_ctrl_c() -> Generator[None, None, None]:
    """Processes that begin inside never hear Ctrl-C, not even while they import."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(start: Start) -> None:
    """The beginning of a process."""
    global _own, _number
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one tells the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logger = logging.getLogger(LIBRARY)
    logger.addHandler(QueueHandler(start.messages))
    logger.propagate = False
    torch.set_num_threads(start.threads)
    _number, device = start.places.get()
    _own = replace(start, recipe=replace(start.recipe, model=replace(start.recipe.model, device=device)))


def _end_with_parent() -> None:
    """Wait for the end of the process that began this one, however it ended, and end too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _attempt(job: Job, wait_for_others: bool) -> Outcome | None:
    """One job, in one of the processes."""
    if (own := _own) is None:
        raise RuntimeError("This process has not begun.")

    def watch(stage: str, done: float, total: int) -> None:
        own.shares[_number] = share_done(stage, done, total)
        if own.stop.is_set():
            raise KeyboardInterrupt

    try:
        return attempt(
            job,
            lambda job: upscale(job, own.recipe.model, own.recipe.options, watch),
            own.recipe.state_of,
            wait_for_others,
        )
    finally:
        own.shares[_number] = 0.0


class _Relay(logging.Handler):
    """Hands the warnings of other processes to this one's."""

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`."""
        logging.getLogger(record.name).handle(record)
