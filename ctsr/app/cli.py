"""The command line: `ctsr upscale`, `ctsr sweep`, `ctsr evaluate`, `ctsr convert`, `ctsr info`.

Everything a person reads goes to stderr, but for what `info` prints and the scores of `evaluate`. Exit codes: 0; 1 when
a picture failed; 2 for arguments or a model that cannot be used, before anything is written; 130 after Ctrl-C. The
modules that need torch are imported inside the commands, so that `--help` need not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from ..errors import CTSRError
from .cli_batch import batch_command
from .cli_hub import hub_folder_command
from .cli_looks import compare_command, report_command
from .console import Bar, print_scores, report_errors, say, sum_up

if TYPE_CHECKING:
    import torch

    from ..images.color_fix import ColorFix
    from ..images.formats import Encoding
    from ..images.picture import Bits
    from ..precision import Precision
    from .evaluate import Pair, Task
    from .lazy_pipeline import LazyPipeline
    from .options import Options
    from .plan import Job
    from .run import Found

app = typer.Typer(
    name="ctsr",
    help="One-step diffusion super-resolution with a dial between realism (t = 0) and fidelity (t = 1).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT_SCALE = 4.0


class PrecisionName(str, Enum):
    """What the networks compute in."""

    _value_: Precision

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class FilePrecisionName(str, Enum):
    """What the weights in a file are."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class DeviceName(str, Enum):
    """Where the networks run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class ColorFixName(str, Enum):
    """How colours are taken from the original."""

    _value_: ColorFix

    none = "none"
    wavelet = "wavelet"
    adain = "adain"
    lab = "lab"


ScaleOption = Annotated[float | None, typer.Option(help="Side of the result / side of the picture.  [default: 4]")]
SizeOption = Annotated[
    str | None, typer.Option(metavar="WxH", help="Exact size of the result in pixels, instead of --scale.")
]
ModelOption = Annotated[str, typer.Option(help="'mini' (built in), a .safetensors file of ctsr, or a folder.")]
TileOption = Annotated[int, typer.Option(help="Side of a tile in pixels of the result; 0: automatic, none if it fits.")]
ColorFixOption = Annotated[
    ColorFixName | None, typer.Option(help="Take colours from the original.  [default: the model's own]")
]
PrecisionOption = Annotated[PrecisionName, typer.Option(help="auto: bf16 where the hardware has it, else fp32.")]
DeviceOption = Annotated[DeviceName, typer.Option(help="auto: a CUDA device where there is one, else the CPU.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is already there, whatever it was made with.")
]


class FormatName(str, Enum):
    """Formats by their usual suffix."""

    png = "png"
    jpg = "jpg"
    webp = "webp"
    tif = "tif"
    avif = "avif"
    gif = "gif"
    bmp = "bmp"


class BitDepth(str, Enum):
    """Bits of a channel."""

    eight = "8"
    sixteen = "16"
    thirty_two = "32"


BITS: dict[BitDepth, Bits] = {BitDepth.eight: 8, BitDepth.sixteen: 16, BitDepth.thirty_two: 32}

FormatOption = Annotated[FormatName | None, typer.Option("--format", help="Of every result.  [default: as OUT or IN]")]
SuffixOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Put behind the names, such as -x4.  [default: -ctsr without -o]")
]
QualityOption = Annotated[
    int | None, typer.Option(metavar="1..100", help="Of JPEG, WebP and AVIF.  [default: 95, 95, 90]")
]
LosslessOption = Annotated[
    bool, typer.Option("--lossless", help="WebP without loss, which it also is where IN is lossless WebP.")
]
BitDepthOption = Annotated[
    BitDepth | None, typer.Option(help="Of a channel: PNG to 16, TIFF to 32 (floating-point).  [default: as IN]")
]
StripOption = Annotated[
    bool, typer.Option("--strip-metadata", help="Leave out camera, place, date, comments and text of the original.")
]


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
    t: Annotated[
        str, typer.Option("--t", help="The dial: 0 = most realistic, 1 = most faithful; auto: chosen for each picture.")
    ] = "0.5",
    model: ModelOption = "mini",
    tile: TileOption = 0,
    color_fix: ColorFixOption = None,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = DeviceName.auto,
    overwrite: OverwriteOption = False,
    file_format: FormatOption = None,
    suffix: SuffixOption = None,
    quality: QualityOption = None,
    lossless: LosslessOption = False,
    bit_depth: BitDepthOption = None,
    strip_metadata: StripOption = False,
) -> None:
    """Upscale pictures, or folders of pictures.

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
    with report_errors(console):
        from ..images.formats import Encoding
        from .claims import remove_leftovers
        from .finished import Finished
        from .options import parse_t
        from .plan import Naming, check_encoding, plan
        from .upscale import upscale

        encoding = Encoding(quality, lossless, None if bit_depth is None else BITS[bit_depth])
        options = make_options(parse_t(t), scale, size, tile, color_fix, strip_metadata, encoding)
        loaded = make_model(model, precision, device)
        jobs = plan(inputs, output, Naming(suffix, file_format and f".{file_format.value}"))
        check_encoding(jobs, encoding)
        remove_leftovers({job.target.parent for job in jobs})
        found = Finished(loaded, options, overwrite)
        code = run_jobs(console, jobs, lambda job, on_tile: upscale(job, loaded, options, on_tile), found)
    raise typer.Exit(code)


@app.command("sweep")
def sweep_command(
    picture: Annotated[Path, typer.Argument(metavar="IN", help="A picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write into.")],
    t: Annotated[str, typer.Option("--t", help="Values of the dial with commas between.")] = "0,0.2,0.4,0.6,0.8,1",
    features: Annotated[
        Path | None, typer.Option("--features", metavar="DIR", help="Weights of LPIPS and DISTS, without pyiqa.")
    ] = None,
    scale: ScaleOption = None,
    size: SizeOption = None,
    model: ModelOption = "mini",
    tile: TileOption = 0,
    color_fix: ColorFixOption = None,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = DeviceName.auto,
    strip_metadata: StripOption = False,
) -> None:
    """Upscale one picture at several t, for the price of one and a decode each.

    Writes NAME_t0.00.png and so on, and NAME_strip.png: the middle of the bicubic enlargement and of each result side
    by side, pixel for pixel. Files of an earlier sweep are replaced.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from .options import parse_dials
        from .plan import Job
        from .upscale import sweep

        dials = parse_dials(t)
        options = make_options(dials[0], scale, size, tile, color_fix, strip_metadata)
        loaded = make_model(model, precision, device)
        if output.exists() and not output.is_dir():
            raise ValueError(f"{output} is a file: name a folder with -o.")
        jobs = [Job(picture, output)]
        code = run_jobs(console, jobs, lambda job, on_tile: sweep(job, loaded, options, dials, on_tile))
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
    device: DeviceOption = DeviceName.auto,
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
            from . import evaluate
        except ImportError as error:
            needs = "`ctsr evaluate` needs scikit-image and matplotlib"
            raise CTSRError(f'{needs} ({error}): pip install "ctsr[eval]".') from error

        options = make_options(0, None, None, tile, color_fix)
        loaded, others = make_model(model, precision, device), sr or []
        dials = sorted(parse_dials(t))
        task = evaluate.Task(loaded, options, dials, evaluate.name_folders(others), output, features)
        evaluate.check_out(task, [lr, hr, *others])
        pairs = evaluate.find_pairs(lr, hr, others)
        run_evaluation(console, pairs, task)


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
    model: Annotated[str, typer.Argument(help="'mini', a .safetensors file, or a folder.")] = "mini",
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the picture that goes in.")] = "1920x1080",
    scale: Annotated[float, typer.Option(help="Side of the result / side of the picture.")] = DEFAULT_SCALE,
    tile: TileOption = 0,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = DeviceName.auto,
) -> None:
    """Show what a model is, how it would run here, and the memory and tiles that a picture would take."""
    console = Console(stderr=True)
    with report_errors(console):
        from .info import memory_rows, model_rows
        from .options import Options, parse_size

        options = Options(scale=scale, tile=tile)
        width, height = parse_size(size)
        loaded = make_model(model, precision, device)
        rows = [*model_rows(loaded, precision.value), *memory_rows(loaded, options, (height, width))]
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
    model: ModelOption = "mini",
    tile: TileOption = 0,
    precision: PrecisionOption = PrecisionName.auto,
    device: DeviceOption = DeviceName.auto,
) -> None:
    """Say what a run would take before it runs: tiles, passes, memory against what is free, time.

    The first time on a device it measures for about two seconds how fast the model runs. Nothing is written but these
    speeds, into the user's cache folder. The exit code is 1 for a run that memory cannot hold.
    """
    console = Console(stderr=True)
    with report_errors(console):
        from .forecast import result_sizes

        options = make_options(0, scale, size, tile, None)
        sizes = result_sizes(inputs or [], frames, options)
        plan = make_model(model, precision, device).pipeline.plan(sizes, tile, keep=at_once)
        indent = max(len(name) for name, _ in plan.rows()) + 2
        for name, value in plan.rows():
            typer.echo(f"{name:<{indent}}{value}")
        code = int(plan.refusal is not None)
    raise typer.Exit(code)


app.command("batch")(batch_command)
app.command("compare")(compare_command)
app.command("report")(report_command)
app.command("hub-folder")(hub_folder_command)


# --------------------------------------------------------------------------------------------------------- arguments


def make_options(
    t: float | Literal["auto"],
    scale: float | None,
    size: str | None,
    tile: int,
    color_fix: ColorFixName | None,
    strip_metadata: bool = False,
    encoding: Encoding | None = None,
) -> Options:
    """The options of a run; raises ValueError for those that cannot be."""
    from ..images.formats import FOLLOW
    from .options import Options, parse_size

    if scale is not None and size is not None:
        raise ValueError("--scale and --size exclude each other: give one of them.")
    return Options(
        t=t,
        scale=DEFAULT_SCALE if scale is None else scale,
        size=None if size is None else parse_size(size),
        tile=tile,
        color_fix=None if color_fix is None else color_fix.value,
        strip_metadata=strip_metadata,
        encoding=encoding or FOLLOW,
    )


def make_model(name: str, precision: PrecisionName, device: DeviceName) -> LazyPipeline:
    """A model that is loaded at its first use; raises for one that is not there, and for what the device cannot do."""
    from .lazy_pipeline import LazyPipeline

    return LazyPipeline(name, precision.value, choose_device(device))


def choose_device(device: DeviceName) -> torch.device:
    """The device; raises ValueError for CUDA where there is none."""
    import torch

    has_cuda = device is not DeviceName.cpu and torch.cuda.is_available()
    if device is DeviceName.cuda and not has_cuda:
        raise ValueError(
            "There is no CUDA device that this torch can use: choose --device cpu, or install torch for it."
        )
    return torch.device("cuda" if has_cuda else "cpu")


# -------------------------------------------------------------------------------------------------------------- runs


def run_jobs(console: Console, jobs: Sequence[Job], work: Callable[[Job, Bar], str], found: Found | None = None) -> int:
    """Runs jobs with a progress bar, then sums up; 1 when one was not done, 130 after Ctrl-C, else 0. See `run`."""
    from .run import Outcome, run

    bar, outcomes, interrupted = Bar(console, len(jobs)), list[Outcome](), False

    def one(job: Job) -> str:
        bar.start(job.source.name)
        return work(job, bar)

    try:
        with nullcontext() if bar.progress.disable else bar.progress:  # rich 13 ends a disabled one with a line
            for outcome in run(jobs, one, found):
                outcomes.append(outcome)
                bar.finish()
    except KeyboardInterrupt:
        interrupted = True
    sum_up(console, outcomes, len(jobs))
    if interrupted:
        say(console, "Interrupted. Start it again to go on: what is done will be skipped.")
        return 130
    return int(any(outcome.state in ("failed", "kept") for outcome in outcomes))


def run_evaluation(console: Console, pairs: Sequence[Pair], task: Task) -> None:
    """Scores pairs with a progress bar, then writes and prints; exit code 2 for pairs that do not fit, 1 for failures.

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
            scores = evaluate.evaluate(watched(), task, bar)
    except evaluate.PictureError as error:
        say(console, f"Error: {error}")
        raise typer.Exit(1) from None
    files = evaluate.write_scores(scores, task.out)
    print_scores(scores, len(pairs))
    say(console, f"Written: {', '.join(map(str, files))}")
