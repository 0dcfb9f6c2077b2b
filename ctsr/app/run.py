"""A run over many pictures: each job yields an outcome, and one bad picture does not stop the others."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CheckpointError, CTSRError, OutputFolderError, first_line
from ..tiling.tiles import is_out_of_memory
from .plan import Job

logger = logging.getLogger(__name__)

EXPECTED = (CTSRError, ValueError, OSError, MemoryError, RuntimeError)
"""What may go wrong with one picture; torch raises RuntimeError."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `detail`: the size of the result, or why there is none."""

    job: Job
    state: Literal["done", "skipped", "failed"]
    detail: str = ""


def run(jobs: Iterable[Job], work: Callable[[Job], str], overwrite: bool) -> Iterator[Outcome]:
    """Do the jobs one after the other, up to the first whose folder takes no file.

    Args:
        jobs: see `plan`.
        work: makes one picture and says what it made.
        overwrite: do those whose target exists again, too.

    Raises:
        CheckpointError: the model cannot be loaded, which ends the run.
    """
    for job in jobs:
        if not overwrite and job.target.exists():
            yield Outcome(job, "skipped")
            continue
        try:
            detail = work(job)
        except CheckpointError:
            raise
        except EXPECTED as error:
            logger.debug("%s", job.source, exc_info=True)
            yield Outcome(job, "failed", describe_error(error, job.source))
            if isinstance(error, OutputFolderError):
                return
        else:
            yield Outcome(job, "done", detail)


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
