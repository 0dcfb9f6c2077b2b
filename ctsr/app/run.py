"""A run over many pictures: each job yields an outcome, and one bad picture does not stop the others."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from ..errors import CheckpointError, CTSRError, OutputFolderError, first_line
from ..tiling.memory import is_out_of_memory
from .claims import claim
from .jobs import Job

logger = logging.getLogger(__name__)

EXPECTED = (CTSRError, ValueError, OSError, MemoryError, RuntimeError)
"""What may go wrong with one picture; torch raises RuntimeError."""

State = Literal["done", "skipped", "kept", "failed"]
TargetState = Literal["absent", "finished", "other"]
StateOf = Callable[[Job], tuple[TargetState, str]]
"""What is at a job's target, and why it is another result; see `finished.Recipe.state_of`."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: which.
        state: "skipped" where it was finished, "kept" where something else is at its target.
        detail: the size of the result, or why there is none.
        ends_run: the next job would fail likewise.
    """

    job: Job
    state: State
    detail: str = ""
    ends_run: bool = False


def run(jobs: Iterable[Job], work: Callable[[Job], str], state_of: StateOf | None = None) -> Iterator[Outcome]:
    """Do the jobs one after the other, up to the first whose folder takes no file.

    Those that another run has claimed come last: if that run has not finished them, this one does.

    Args:
        jobs: see `jobs.plan`.
        work: makes one picture and says what it made.
        state_of: tells what is there; None where every job is done again, whatever is there, and without claims.

    Raises:
        CheckpointError: the model cannot be loaded, which ends the run.
    """
    claimed: list[Job] = []
    for wait, some in ((False, jobs), (True, claimed)):
        for job in some:
            outcome = attempt(job, work, state_of, wait)
            if outcome is None:
                claimed.append(job)
                continue
            yield outcome
            if outcome.ends_run:
                return


@overload
def attempt(job: Job, work: Callable[[Job], str], state_of: StateOf | None, wait: Literal[True]) -> Outcome: ...
@overload
def attempt(job: Job, work: Callable[[Job], str], state_of: StateOf | None, wait: bool) -> Outcome | None: ...
def attempt(job: Job, work: Callable[[Job], str], state_of: StateOf | None, wait: bool) -> Outcome | None:
    """Do one job; None if another run has claimed it, unless this one shall `wait` for it. Raises as `run`."""
    try:
        if state_of is None:
            return Outcome(job, "done", work(job))
        if (there := _there(job, state_of)) is not None:
            return there
        with claim(job.target, wait) as mine:
            return (_there(job, state_of) or Outcome(job, "done", work(job))) if mine else None
    except CheckpointError:
        raise
    except EXPECTED as error:
        logger.debug("%s", job.source, exc_info=True)
        return Outcome(job, "failed", describe_error(error, job.source), isinstance(error, OutputFolderError))


def _there(job: Job, state_of: StateOf) -> Outcome | None:
    """The outcome of a job at whose target something is that stays."""
    state, why = state_of(job)
    if state == "absent":
        return None
    return Outcome(job, "skipped") if state == "finished" else Outcome(job, "kept", f"{job.target} {why}")


def describe_error(error: Exception, path: Path) -> str:
    """One line for a person: the file, what is wrong and, where it is known, what to do."""
    if isinstance(error, CTSRError) and str(path) in str(error):
        return one_line(error)
    if is_out_of_memory(error):
        return f"{path}: out of memory; choose a smaller size or tile, or close other programs."
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or one_line(error)}."
    if isinstance(error, CTSRError | ValueError):
        return f"{path}: {one_line(error)}"
    return f"{path}: {first_line(error)} (not expected: please report it)."


def one_line(error: Exception) -> str:
    """The error's text without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
