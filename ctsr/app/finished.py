"""What is there already of a run: a result of the same settings is finished, all others are left as they are."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..images.settings import is_whole, read_settings
from .jobs import Job
from .lazy_pipeline import LazyPipeline
from .options import Options
from .run import TargetState
from .upscale import settings_of


@dataclass(frozen=True)
class Recipe:
    """What every picture of a run is made with, so that what is at a target can be told from something else.

    Attributes:
        model, options: of this run.
        overwrite: only what was made after this run began is finished, by this run or by one beside it.
    """

    model: LazyPipeline
    options: Options
    overwrite: bool = False
    began: int = field(default_factory=time.time_ns)

    def state_of(self, job: Job) -> tuple[TargetState, str]:
        """What is at a job's target, and of another result why it is another."""
        try:
            there = job.target.stat()
        except OSError:  # other than that nothing is there: the work will say what is wrong with the place
            return "absent", ""
        if self.is_replaced(there):
            return "absent", ""
        settings = read_settings(job.target)
        if there.st_size == 0 or (settings is not None and not is_whole(job.target)):
            return "absent", ""
        if settings is None:
            return "other", "is there already and does not say what it was made with"
        if different := self._difference(settings, job.source):
            return "other", f"is there already, made otherwise ({different})"
        return "finished", ""

    def is_replaced(self, there: os.stat_result) -> bool:
        """Whether a file is made again, whatever it was made with."""
        return self.overwrite and there.st_mtime_ns < self.began

    def _difference(self, there: Mapping[str, Any], source: Path) -> str:
        """The settings in which a result differs from what is wanted, as "t 0.5, not 0.3"; nothing if in none."""
        wanted = settings_of(source, self.model, self.options)
        names = [name for name in {**wanted, **there} if name != "ctsr" and wanted.get(name) != there.get(name)]
        if names in (["source"], ["weights"]):
            return "of another picture" if names == ["source"] else "with other weights"
        names = [name for name in names if name not in ("source", "weights")]
        return ", ".join(f"{name} {there.get(name, 'as by default')}, not {wanted.get(name, 'so')}" for name in names)
