"""What a person sees of a run: lines on stderr, a progress bar, and a table of scores on stdout."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..errors import CTSRError

if TYPE_CHECKING:
    from .metrics import Scores
    from .run import Outcome


STAGES = {"encode": (0.0, 0.25), "unet": (0.25, 0.35), "decode": (0.6, 0.4)}
"""Start and share of each step in the work on one picture."""


def share_done(stage: str, done: float, total: int) -> float:
    """Of the work on one picture, from 0 to 1; see `pipeline.Progress`."""
    start, share = STAGES[stage]
    return start + share * done / total


def say(console: Console, text: str) -> None:
    """One line, as it is."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


class ShortLines(logging.Handler):
    """Shows the library's warnings as one line each."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler.emit`."""
        say(self.console, f"{record.levelname.capitalize()}: {' '.join(record.getMessage().split())}")


@contextmanager
def report_errors(console: Console) -> Generator[None, None, None]:
    """Print expected errors and warnings as one line each; exit with 2 after an error, 130 after Ctrl-C."""
    logger, handler = logging.getLogger(str(__package__).rpartition(".")[0]), ShortLines(console)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # torch's remarks to programmers
            yield
    except KeyboardInterrupt:
        say(console, "Interrupted.")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `ctsr info | head`
        raise
    except (CTSRError, ValueError, OSError) as error:
        say(console, f"Error: {' '.join(str(error).split())}")
        raise typer.Exit(2) from None
    finally:
        logger.removeHandler(handler)


class Bar:
    """A progress bar over the files and one over the steps and tiles of the present one; a pipeline's callback."""

    def __init__(self, console: Console, files: int):
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self.files: TaskID | None = self.progress.add_task("pictures", total=files, pace="") if files > 1 else None
        self.picture = self.progress.add_task("", total=100, pace="")
        self.began, self.done, self.left = time.monotonic(), 0, files

    def start(self, name: str) -> None:
        """A picture begins."""
        self.progress.reset(self.picture, description=name[-40:], pace="")

    def finish(self, done: bool = True) -> None:
        """A picture is done; or skipped or given up, and then no longer counted."""
        self.done, self.left = self.done + done, self.left - (not done)
        if self.files is not None:
            pace = f"{(time.monotonic() - self.began) / self.done:.1f} s each" if self.done else ""
            self.progress.update(self.files, completed=self.done, total=self.left, pace=pace)

    def others(self, pictures: float) -> None:
        """Other processes are in the middle of so many pictures' work."""
        if self.files is not None:
            self.progress.update(self.files, completed=self.done + pictures)

    def __call__(self, stage: str, done: float, total: int) -> None:
        """See `pipeline.Progress`."""
        self.progress.update(self.picture, completed=round(100 * share_done(stage, done, total)))


def sum_up(console: Console, outcomes: Sequence[Outcome], jobs: int) -> None:
    """The result of a single picture, or the numbers of all; then the message of each that was not done."""
    by_state = {state: [x for x in outcomes if x.state == state] for state in ("done", "skipped", "kept", "failed")}
    if jobs == 1:
        for outcome in by_state["done"]:
            say(console, f"{outcome.job.target}: {outcome.detail}")
        for outcome in by_state["skipped"]:
            say(console, f"{outcome.job.target} is finished already: skipped (--overwrite does it again).")
    else:
        counts = [f"{len(by_state['done'])} done", f"{len(by_state['skipped'])} skipped"]
        counts += [f"{len(by_state['kept'])} left as they were"] if by_state["kept"] else []
        counts += [f"{len(by_state['failed'])} failed"]
        counts += [f"{jobs - len(outcomes)} not started"] if len(outcomes) < jobs else []
        hint = " (skipped: finished already, --overwrite does them again)" if by_state["skipped"] else ""
        say(console, ", ".join(counts) + hint)
    if kept := by_state["kept"]:
        others = f" (and {len(kept) - 1} more likewise)" if len(kept) > 1 else ""
        say(console, f"Error: {kept[0].detail}{others}: replace with --overwrite, or name another output with -o.")
    for outcome in by_state["failed"]:
        say(console, f"Error: {outcome.detail}")


def print_scores(scores: Scores, pictures: int) -> None:
    """The means as a table on stdout, as wide as it must be where that is not a terminal."""
    table = Table(title=f"Means over {pictures} picture{'s' * (pictures > 1)}", caption_justify="left")
    table.add_column("method")
    table.add_column("t")
    for name in scores.metrics:
        table.add_column(name, justify="right")
    for method, values in scores.means.items():
        t = "" if method.t is None else f"{method.t:g}"
        table.add_row(Text(method.name), t, *(f"{value:.4f}" for value in values.values()))
    lower = [name for name, is_lower in scores.metrics.items() if is_lower]
    table.caption = f"Lower is better: {', '.join(lower)}" if lower else None
    Console(width=None if sys.stdout.isatty() else 200).print(table)
