"""`ctsr hub-folder`: a checkpoint as a folder that can be uploaded to the hub as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import report_errors, say


def hub_folder_command(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="A new folder.")],
    model: Annotated[
        str, typer.Option(help="A file of ours, a folder in diffusers' layout, or 'mini' or 'lowlight'.")
    ] = "mini",
    repo: Annotated[
        str, typer.Option(metavar="USER/NAME", help="Where it will lie on the hub.  [default: FOLDER's name]")
    ] = "",
    license: Annotated[str, typer.Option(help="Of the weights.  [default: as the checkpoint tells]")] = "",
) -> None:
    """Write a folder for the hub: diffusers' pipeline, its blocks, one file, a tiny one for tests, and a model card.

    Nothing is sent. Upload it with `hf upload USER/NAME FOLDER`.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from ..checkpoints.own import MINI_WEIGHTS
        from ..load import BUILT_IN, load_pipeline
        from ..publish.folder import write_hub_folder

        pipeline = load_pipeline(model)
        facts: Mapping[str, str] = pipeline.config["about"] or {}
        about, licence = "", facts.get("licence", "unknown")
        if model == BUILT_IN:
            card = (MINI_WEIGHTS.parent / "README.md").read_text(encoding="utf-8")
            about, licence = card.partition("\n")[2].strip() + "\n", "apache-2.0"
        name = (repo or output.resolve().name).rpartition("/")[2]
        write_hub_folder(pipeline, output, name, repo or name, license or licence, about)
        say(console, f"Written: {output}. Upload it: hf upload {repo or 'USER/' + name} {output}")
