"""What a node tells while it works: the host's progress bar, and a line of text on the node itself.

Every tile is a step of the bar and a chance to cancel. Warnings of this pack and of the library appear on the node as
well as in the console.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from comfy_execution.utils import get_executing_context
from server import PromptServer

from .checks import plain_errors
from .host import TICKS, new_bar, stop_if_cancelled

if TYPE_CHECKING:
    from ..ctsr.pipeline import Progress

PACK = __name__.rpartition(".nodes.")[0]
"""Name of the pack within the host, and of the loggers below it."""
NAMES = {"encode": "encode", "unet": "restore", "decode": "decode"}

logger = logging.getLogger(__name__)


class Work:
    """A node at work on several pictures in several stages.

    Args:
        pictures: how many, over the whole work.
        stages: that each picture goes through.

    Attributes:
        warnings: so far.
        result: what stands on the node at the end.
        memory: most bytes that a stage was predicted to work in.
    """

    def __init__(self, pictures: int, stages: Sequence[str]):
        self.pictures, self.stages = pictures, stages
        self.bar = new_bar(TICKS)
        self.warnings: list[str] = []
        self.result = ""
        self.memory = 0

    def picture(self, number: int) -> Progress:
        """What the pipeline calls after every tile of picture `number`."""
        of_pictures = f" · picture {number + 1} of {self.pictures}" if self.pictures > 1 else ""

        def on_tile(stage: str, done: float, total: int) -> None:
            stop_if_cancelled()
            part = (self.stages.index(stage) + done / total) / len(self.stages)
            self.bar.update_absolute(int(TICKS * (number + part) / self.pictures), TICKS)
            of_tiles = f" · tile {math.ceil(done)} of {total}" if total > 1 else ""
            self.show(f"{NAMES[stage]}{of_tiles}{of_pictures}")

        return on_tile

    def finish(self) -> None:
        """Puts the result and the memory it took on the node."""
        memory = f" · {self.memory / 2**30:.2f} GiB" if self.memory else ""
        if self.result or self.warnings:
            self.show(f"{self.result}{memory}")

    def warn(self, text: str) -> None:
        """Logs a warning once; `working` puts it on the node too."""
        if text not in self.warnings:
            logger.warning(text)

    def show(self, text: str) -> None:
        """Puts a line on the node, with the warnings so far below it."""
        context = get_executing_context()
        if context is not None and PromptServer.instance is not None:
            lines = [*([text] if text else []), *(f"⚠ {warning}" for warning in self.warnings)]
            PromptServer.instance.send_progress_text("\n".join(lines), context.node_id)


class OnNode(logging.Handler):
    """Hands each warning on, once."""

    def __init__(self, show: Callable[[str], None]):
        super().__init__(logging.WARNING)
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Called by `logging`."""
        self.show(record.getMessage())


@contextmanager
def working(pictures: int, stages: Sequence[str] = ()) -> Iterator[Work]:
    """A node at work; warnings of the pack that are logged within are put on the node, errors are plain ones."""
    work = Work(pictures, stages)

    def on_warning(text: str) -> None:
        if text not in work.warnings:
            work.warnings.append(text)

    handler, pack = OnNode(on_warning), logging.getLogger(PACK)
    pack.addHandler(handler)
    try:
        with plain_errors():
            yield work
        work.finish()
    finally:
        pack.removeHandler(handler)
