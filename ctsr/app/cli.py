"""The command line `ctsr`; its other commands are in `cli_batch`, `cli_hub` and `cli_looks`.

What was asked for goes to stdout (`info`, `plan`, `--dry-run`, scores of `evaluate`, findings of `report`), progress
and errors to stderr. Exit codes: 0; 1 when a picture failed; 2 for arguments or a model that cannot be used, before
anything is written; 130 after Ctrl-C. The modules that need torch are imported inside the commands, so that `--help`
need not wait for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import CTSRError
from .arguments import (
    BitDepthOption,
    ColorFixOption,
    DeviceOption,
    DevicesOption,
    DryRunOption,
    FilePrecisionName,
    FitOption,
    FormatOption,
    JobsOption,
    LongSideOption,
    LosslessOption,
    MegapixelsOption,
    ModelOption,
    OverwriteOption,
    PrecisionName,
    PrecisionOption,
    QualityOption,
    ScaleOption,
    SizeOption,
    StripOption,
    SuffixOption,
    TileOption,
    make_encoding,
    make_model,
    make_options,
    make_size,
    one_device,
)
from .cli_batch import batch_command
from .cli_hub import hub_folder_command
from .cli_looks import app_command, compare_command, report_command
from .console import Bar, print_scores, report_errors, say, sum_up

if TYPE_CHECKING:
    import torch

    from ..images.formats import Encoding
    from .evaluate import Task
    from .finished import Recipe
    from .jobs import Job
    from .metrics import Scores
    from .pairs import Pair
    from .run import Outcome

app = typer.Typer(
    name="ctsr",
    help="One-step diffusion super-resolution with a dial between realism (t = 0) and fidelity (t = 1).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """`--version`."""
    if wanted:
        from .. import __version__

        typer.echo(f"ctsr {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One-step diffusion super-resolution with a dial between realism (t = 0) and fidelity (t = 1)."""


# ---------------------------------------------------------------------------------------------------------- commands


@app.command("upscale")
def upscale_command(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN", help="Pictures, and folders of pictures.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="The picture or the folder to write.")
    ] = None,
    scale: ScaleOption = None,
    size: SizeOption = None,
    fit: FitOption = None,
    long_side: LongSideOption = None,
    megapixels: MegapixelsOption = None,
    t: Annotated[
        str, typer.Option("--t", help="The dial: 0 = most realistic, 1 = most faithful; auto: chosen for every place.")
    ] = "0.5",
    model: ModelOption = "mini",
    tile: TileOption = 0,
    color_fix: ColorFixOption = None,
    precision: PrecisionOption = PrecisionName.auto,
    devices: DevicesOption = "auto",
    jobs: JobsOption = 1,
    overwrite: OverwriteOption = False,
    only_plan: DryRunOption = False,
    file_format: FormatOption = None,
    suffix: SuffixOption = None,
    quality: QualityOption = None,
    lossless: LosslessOption = False,
    bit_depth: BitDepthOption = None,
    strip_metadata: StripOption = False,
) -> None:
    """Upscale pictures, or folders of pictures; - is standard input or output.

    Without -o, photo.jpg becomes photo-ctsr.png in the current folder. With one picture, OUT is the picture to write
    if it has a suffix (.png, .jpg, .tif, .webp, ...), else a folder. Folders are searched with their subfolders; OUT
    gets the same names in the same subfolders, with the same suffixes where that format can be written without loss
    of transparency, frames or pages, else .png or .tif. Animations and documents of several pages are upscaled frame
    by frame.

    A result that is already there is skipped if it was made of the same picture by the same model and settings, so
    that an interrupted run can be started again, and several runs into one folder share the work. Anything else that is
    there is left alone and reported, see --overwrite. One bad picture does not stop the others; it is reported at the
    end, and the exit code is 1.
    """
    console = Console(stderr=True)
    with report_errors(console), TemporaryDirectory() as folder:
        from .devices import parse_devices
        from .finished import Recipe
        from .options import parse_t
        from .pipes import PIPE, give_output

        encoding = make_encoding(quality, lossless, bit_depth)
        wanted = make_size(scale, size, fit, long_side, megapixels)
        options = make_options(parse_t(t), wanted, tile, color_fix, strip_metadata, encoding)
        where = parse_devices(devices) * jobs
        loaded = make_model(model, precision, where[0])
        recipe = Recipe(loaded, loaded.settled(options), overwrite)
        planned = plan_jobs(inputs, output, suffix, file_format and f".{file_format.value}", encoding, Path(folder))
        if only_plan:
            print_plan(planned, recipe)
            return
        code = upscale_all(console, planned, recipe, where)
        if output == PIPE and code == 0:
            give_output(planned[0].target)
    raise typer.Exit(code)


@app.command("sweep")
def sweep_command(
    picture: Annotated[Path, typer.Argument(metavar="IN", help="A picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write into.")],
    t: Annotated[str, typer.Option("--t", help="Values of the dial with commas between.")] = "0,0.2,0.4,0.6,0.8,1",
    scale: ScaleOption = None,
    size: SizeOption = None,
    fit: FitOption = None,
    long_side: LongSideOption = None,
    megapixels: MegapixelsOption = None,
    model: ModelOption = "mini",
    tile: TileOption = 0,
    color_fix: ColorFixOption = None,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = "auto",
    strip_metadata: StripOption = False,
) -> None:
    """Upscale one picture at several t, for the price of one and a decode each.

    Writes NAME_t0.00.png and so on, and NAME_strip.png: the middle of the bicubic enlargement and of each result side
    by side, pixel for pixel. Files of an earlier sweep are replaced.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from .jobs import Job
        from .options import parse_dials
        from .run import run
        from .upscale import sweep

        dials = parse_dials(t)
        wanted = make_size(scale, size, fit, long_side, megapixels)
        options = make_options(dials[0], wanted, tile, color_fix, strip_metadata)
        loaded = make_model(model, precision, one_device(device))
        options = loaded.settled(options)
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file: name a folder with -o.")
        bar = Bar(console, 1)

        def work(job: Job) -> str:
            bar.start(job.source.name)
            return sweep(job, loaded, options, dials, bar)

        code = watch(console, bar, run([Job(picture, output)], work), 1)
    raise typer.Exit(code)


@app.command("evaluate")
def evaluate_command(
    lr: Annotated[Path, typer.Option("--lr", metavar="DIR", help="The low-resolution pictures.")],
    hr: Annotated[Path, typer.Option("--hr", metavar="DIR", help="Their ground truth, under the same names.")],
    output: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write into.")],
    sr: Annotated[
        list[Path] | None, typer.Option("--sr", metavar="DIR", help="Results of another method; may be repeated.")
    ] = None,
    t: Annotated[str, typer.Option("--t", help="Values of the dial with commas between.")] = "0,0.2,0.4,0.6,0.8,1",
    features: Annotated[
        Path | None, typer.Option("--features", metavar="DIR", help="Weights of LPIPS and DISTS, without pyiqa.")
    ] = None,
    model: ModelOption = "mini",
    tile: TileOption = 0,
    color_fix: ColorFixOption = None,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = "auto",
) -> None:
    """Score results along t against the ground truth, beside bicubic, a blend of its two ends and others' results.

    Pictures belong together by their names without suffix; a result has its ground truth's size. Writes
    t_0.00/NAME.png and so on, scores.csv, per_picture.csv and perception_distortion.png, and prints the means. PSNR
    and SSIM are of Y, no border cropped; "pattern" is what lies at the same places of an 8x8 grid on all pictures, in
    levels of 255 (of photographs about .1). LPIPS and DISTS take their weights from --features, if it is given; else
    they, NIQE, MUSIQ, MANIQA, CLIPIQA and FID are pyiqa's, where it is installed. The blend is scored if --t holds both
    0 and 1. Files of an earlier run are replaced.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from .options import parse_dials

        try:
            from . import evaluate, pairs
            from .scores import write_scores
        except ImportError as error:
            needs = "`ctsr evaluate` needs scikit-image and matplotlib"
            raise CTSRError(f'{needs} ({error}): pip install "ctsr[eval]".') from error

        options = make_options(0, make_size(), tile, color_fix)
        loaded, others = make_model(model, precision, one_device(device)), sr or []
        dials = sorted(parse_dials(t))
        task = evaluate.Task(loaded, options, dials, pairs.name_folders(others), output, features)
        evaluate.check_out(task, [lr, hr, *others])
        found = pairs.find_pairs(lr, hr, others)
        scores = score_pairs(console, found, task)
        files = write_scores(scores, output)
        print_scores(scores, len(found))
        say(console, f"Written: {', '.join(map(str, files))}")


@app.command("convert")
def convert_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="OSEDiff's, TADSR's or PiSA-SR's .pkl, or a model of ctsr.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The .safetensors file to write.")],
    base: Annotated[
        Path | None, typer.Option("--base", metavar="BASE", help="Stable Diffusion 2.1-base: a folder or a file.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Baked in as it is.  [default: the method's own]")
    ] = None,
    precision: Annotated[
        FilePrecisionName, typer.Option(help="Number format of the weights in OUT.")
    ] = FilePrecisionName.fp16,
    keep_lora: Annotated[
        bool, typer.Option("--keep-lora", help="Leave LoRA apart; OUT then needs peft where it runs.")
    ] = False,
) -> None:
    """Make one file of another method's checkpoint and its base; every other command takes it as --model.

    CHECKPOINT and BASE are told by what is in them, whatever their names. Of a pickle only tensors, numbers and names
    are read; one with code is refused. OUT holds UNet, autoencoder, the prompt's embeddings, source and licence; it is
    there whole or not at all.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from ..convert.convert import Options, convert
        from ..precision import DTYPES

        options = Options(prompt, DTYPES[precision.value], keep_lora)
        convert(checkpoint, base, output, options, lambda name, value: say(console, f"{name}: {value}"))


@app.command("info")
def info_command(
    model: Annotated[
        str, typer.Argument(help="'mini' or 'lowlight' (built in), a .safetensors file, or a folder.")
    ] = "mini",
    input_size: Annotated[str, typer.Option(metavar="WxH", help="Size of the picture that goes in.")] = "1920x1080",
    scale: ScaleOption = None,
    size: SizeOption = None,
    fit: FitOption = None,
    long_side: LongSideOption = None,
    megapixels: MegapixelsOption = None,
    tile: TileOption = 0,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = "auto",
) -> None:
    """Show what a model is, how it would run here, and the memory and tiles that a picture would take."""
    console = Console(stderr=True)
    with report_errors(console):
        from .info import memory_rows, model_rows
        from .options import Options
        from .sizes import parse_box

        options = Options(size=make_size(scale, size, fit, long_side, megapixels), tile=tile)
        width, height = parse_box(input_size)
        loaded = make_model(model, precision, one_device(device))
        memory = memory_rows(loaded, loaded.settled(options), (height, width))
        rows = [*model_rows(loaded, precision.value), *memory]
        indent = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            typer.echo(f"{name:<{indent}}{value}")


@app.command("plan")
def plan_command(
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="[IN...]", help="Pictures, and folders of pictures.")
    ] = None,
    frames: Annotated[
        str | None, typer.Option("--frames", metavar="NxWxH", help="So many pictures of a size, such as 240x640x360.")
    ] = None,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="All results stay in memory, as in Python and in a ComfyUI batch.")
    ] = False,
    scale: ScaleOption = None,
    size: SizeOption = None,
    fit: FitOption = None,
    long_side: LongSideOption = None,
    megapixels: MegapixelsOption = None,
    model: ModelOption = "mini",
    tile: TileOption = 0,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = "auto",
) -> None:
    """Say what a run would take before it runs: tiles, passes, memory against what is free, time.

    The first time on a device it measures for some seconds how fast the model runs. Nothing is written but these
    speeds, into the user's cache folder. The exit code is 1 for a run that memory cannot hold.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from .forecast import result_sizes

        options = make_options(0, make_size(scale, size, fit, long_side, megapixels), tile, None)
        loaded = make_model(model, precision, one_device(device))
        sizes = result_sizes(inputs or [], frames, loaded.settled(options))
        plan = loaded.pipeline.plan(sizes, tile, keep=at_once)
        indent = max(len(name) for name, _ in plan.rows()) + 2
        for name, value in plan.rows():
            typer.echo(f"{name:<{indent}}{value}")
        code = int(plan.refusal is not None)
    raise typer.Exit(code)


app.command("batch")(batch_command)
app.command("compare")(compare_command)
app.command("report")(report_command)
app.command("app")(app_command)
app.command("hub-folder")(hub_folder_command)


# -------------------------------------------------------------------------------------------------------------- runs


def plan_jobs(
    inputs: Sequence[Path],
    output: str | None,
    suffix: str | None,
    form: str | None,
    encoding: Encoding,
    folder: Path,
) -> list[Job]:
    """What is to be made of what; standard input and output go through files of `folder`.

    Args:
        inputs, output: as the command line has them.
        suffix, form: see `Naming`.
        encoding: that every target must take.
        folder: for temporary files.

    Raises:
        ValueError, CTSRError: what cannot be, or not with that encoding, in one sentence.
    """
    from .jobs import Naming, check_encoding, plan
    from .pipes import PIPE, output_file, take_input

    naming = Naming(suffix, form)
    if output == PIPE:
        output, naming = str(output_file(inputs, form or ".png", folder)), Naming()
    jobs = plan(take_input(inputs, folder), output, naming)
    check_encoding(jobs, encoding)
    return jobs


def print_plan(jobs: Sequence[Job], recipe: Recipe) -> None:
    """What would be done, on stdout."""
    from .dry_run import dry_run

    for line in dry_run(jobs, recipe):
        typer.echo(line)


def upscale_all(console: Console, jobs: Sequence[Job], recipe: Recipe, devices: Sequence[torch.device]) -> int:
    """Upscales in this process, or in one for each of the devices; the exit code."""
    from .claims import new_folders, remove_leftovers
    from .parallel import run_parallel
    from .run import run
    from .upscale import upscale

    folders = {job.target.parent for job in jobs}
    bar, devices = Bar(console, len(jobs)), devices[: len(jobs)]

    def work(job: Job) -> str:
        bar.start(job.source.name)
        return upscale(job, recipe.model, recipe.options, bar)

    remove_leftovers(folders)
    with new_folders(folders):
        outcomes = (
            run_parallel(jobs, recipe, devices, bar.others) if len(devices) > 1 else run(jobs, work, recipe.state_of)
        )
        return watch(console, bar, outcomes, len(jobs), details=recipe.options.t == "auto")


def watch(console: Console, bar: Bar, outcomes: Iterator[Outcome], jobs: int, details: bool = False) -> int:
    """Moves the bar, then sums up; 1 when something was not done, 130 after Ctrl-C, else 0.

    With `details` each of several results is told as it is done.
    """
    past: list[Outcome] = []
    interrupted = False
    try:
        with nullcontext() if bar.progress.disable else bar.progress:  # rich 13 ends a disabled one with a line
            for outcome in outcomes:
                past.append(outcome)
                bar.finish(outcome.state == "done")
                if details and jobs > 1 and outcome.state == "done":
                    say(console, f"{outcome.job.target}: {outcome.detail}")
    except KeyboardInterrupt:
        interrupted = True
    sum_up(console, past, jobs)
    if interrupted:
        say(console, "Interrupted. Start it again to go on: what is done will be skipped.")
        return 130
    return int(any(outcome.state in ("failed", "kept") for outcome in past))


def score_pairs(console: Console, pairs: Sequence[Pair], task: Task) -> Scores:
    """Scores pairs with a progress bar; exit code 2 for pairs that do not fit, 1 for failures.

    Scores of a part of the set would pass for those of the whole, so that one bad picture ends it.
    """
    from . import evaluate

    if problems := list(evaluate.problems(pairs, task)):
        for problem in problems:
            say(console, f"Error: {problem}")
        raise typer.Exit(2)
    bar = Bar(console, len(pairs))

    def watched() -> Iterator[Pair]:
        for pair in pairs:
            bar.start(pair.lr.name)
            yield pair
            bar.finish()

    try:
        with nullcontext() if bar.progress.disable else bar.progress:
            return evaluate.evaluate(watched(), task, bar)
    except evaluate.PictureError as error:
        say(console, f"Error: {error}")
        raise typer.Exit(1) from None
