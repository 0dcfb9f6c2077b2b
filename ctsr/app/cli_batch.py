"""`ctsr batch`: many pictures on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .arguments import (
    PER_SHARD,
    IntoName,
    ModelOption,
    OverwriteOption,
    PrecisionName,
    PrecisionOption,
    ScaleOption,
    TileOption,
)
from .console import report_errors, say


def batch_command(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IN", help="Folders of pictures or of shards (.tar, .parquet), or addresses: s3://..."),
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="OUT", help="The folder or address to write to.")],
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of a Ray cluster, or 'auto'.  [default: this machine alone]")
    ] = None,
    workers: Annotated[int, typer.Option(help="Most workers, each with the model.")] = 1,
    cpus: Annotated[int, typer.Option(help="Processors of each worker.")] = 2,
    gpus: Annotated[int, typer.Option(help="GPUs of each worker: 1, or 0 for the CPU.")] = 0,
    scale: ScaleOption = None,
    t: Annotated[float, typer.Option("--t", help="The dial: 0 = most realistic, 1 = most faithful.")] = 0.5,
    model: ModelOption = "mini",
    tile: TileOption = 0,
    precision: PrecisionOption = PrecisionName.auto,
    into: Annotated[IntoName | None, typer.Option(help="tar is WebDataset.  [default: as IN]")] = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Pictures in a shard that is made of pictures.")] = PER_SHARD,
    overwrite: OverwriteOption = False,
    manifest: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for manifest.jsonl.  [default: OUT, if it is a folder]")
    ] = None,
) -> None:
    """Upscale folders or buckets of pictures, or of shards of them, on many machines, or on this one.

    Results have the same names below OUT and the bits that `ctsr upscale` gives on as many threads. A run that was
    stopped, or whose nodes died, goes on when it is started again: what is finished is skipped. manifest.jsonl has a
    line for each picture: source, target, state, detail, seconds and node. The exit code is 1 when a picture failed.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from ..addresses import is_address
        from ..load import is_built_in
        from .batch import Cluster, Task, rows_of, run_batch, write_manifest
        from .options import Options
        from .sizes import Size

        if manifest is None and is_address(output):
            raise ValueError("OUT is an address: say with --manifest into which folder manifest.jsonl goes.")
        model = model if is_built_in(model) else str(Path(model).resolve())
        task = Task(model, precision.value, Options(t, Size(scale), tile=tile), overwrite)
        rows = rows_of(inputs, output, None if into is None else into.value, per_shard)
        lines = run_batch(rows, task, Cluster(cluster, workers, cpus, gpus))
        counts = {"done": 0, "skipped": 0, "kept": 0, "failed": 0}
        for line in write_manifest(lines, manifest or Path(output)):
            counts[line["state"]] += 1
            if line["state"] in ("kept", "failed"):
                say(console, f"Error: {line['detail']}")
        say(console, ", ".join(f"{count} {state}" for state, count in counts.items()))
    raise typer.Exit(int(bool(counts["kept"] or counts["failed"])))
