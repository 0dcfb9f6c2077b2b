"""Whole runs as processes of their own, for tests that kill them or run several at once.

They are forked from a server that has imported everything and computed nothing: each begins within milliseconds.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from ctsr.app.cli import app


def _command(arguments: Sequence[str], log: str) -> None:
    """`ctsr ARGUMENTS`, with its last words in a file."""
    result = CliRunner().invoke(app, list(arguments))
    Path(log).write_text(result.output, encoding="utf-8")
    os._exit(result.exit_code)


def start(arguments: Sequence[object], log: Path) -> BaseProcess:
    """A process that runs the command line."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ctsr.app.upscale", "ctsr.app.finished", "ctsr.app.claims", __name__])
    process = context.Process(target=_command, args=([str(argument) for argument in arguments], str(log)))
    process.start()
    return process
