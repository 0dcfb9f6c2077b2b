"""`ctsr compare`, `ctsr report` and `ctsr app`: pages to look at pictures with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .arguments import ModelOption, one_device
from .console import report_errors, say


def compare_command(
    pictures: Annotated[list[Path], typer.Argument(metavar="A B [C...]", help="Pictures of one scene.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The HTML file to write.")] = Path(
        "compare.html"
    ),
) -> None:
    """Write one HTML file with a slider between any two pictures, and zoom for all of them at once.

    The file holds the pictures (as PNG, without their metadata) and needs no network: send it, or open it anywhere.
    Pictures of several sizes are laid over each other.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from .looks import compare

        say(console, f"{output}: {compare(pictures, output)}")


def report_command(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The picture that went in.")],
    result: Annotated[Path, typer.Argument(metavar="OUT", help="What an upscaler made of it: any upscaler.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PAGE", help="The page.  [default: OUT's name-report.html]"),
    ] = None,
    model: Annotated[
        str,
        typer.Option(help="What was added is measured against this model's t = 1; 'none': against bicubic enlarging."),
    ] = "mini",
) -> None:
    """Report what a result changed of its picture: what it invented, lost, shifted or tinted; seams, halos, clipping.

    Prints a line for each finding, and writes a page with maps and numbers and the same as JSON beside it. The exit
    code is 0 whatever was found.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from .lazy_pipeline import LazyPipeline
        from .looks import write_report

        target = output or Path(f"{result.stem}-report.html")
        loaded = None if model == "none" else LazyPipeline(model, "auto", one_device("auto"))
        found = write_report(source, result, target, loaded)
        for finding in found.findings:
            typer.echo(f"{finding.kind}: {finding.text}")
        if not found.findings:
            typer.echo("Nothing to report.")
        say(console, f"Written: {target}, {target.with_suffix('.json')}")


def app_command(
    model: ModelOption = "mini",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of this machine's own address, 127.0.0.1.")] = 7860,
) -> None:
    """Open a page on this machine: drop a picture, drag t and see it change at once, paint, compare, report, save.

    Stop it with Ctrl-C. Nothing leaves the machine, and no file stays. Needs the extra "app".
    """
    console = Console(stderr=True)
    with report_errors(console):
        from .gui import serve
        from .lazy_pipeline import LazyPipeline

        loaded = LazyPipeline(model, "auto", one_device("auto"))
        serve(loaded, port, lambda: say(console, f"Open http://127.0.0.1:{port} in a browser; Ctrl-C ends it."))
