"""Pictures from files to files: which file becomes which (`plan`), the work on one, and a run over all of them.

What the command line does, without a command line: nothing here prints or exits. A run yields an `Outcome` a file and
never stops at a bad one.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .. import __version__
from ..checkpoints.own import MINI_WEIGHTS
from ..errors import CheckpointError, CTSRError, OutputFolderError, first_line
from ..images.color_fix import ColorFix
from ..images.files import Picture, check_target, output_suffix, read_picture, writable_suffixes, write_picture
from ..images.tensors import MAX_SIDE, check_size, output_size, resize
from ..load import load_pipeline
from ..pipeline import CTSRPipeline, Progress
from ..runtime.offload import check_tile
from ..tiling.tiles import is_out_of_memory, total_memory

logger = logging.getLogger(__name__)

WITHOUT_STILLS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow recognises by name but cannot decode by itself."""
WITHOUT_ALPHA = frozenset({".bmp", ".jpeg", ".jpg"})
BUFFER_BYTES = 44
"""Bytes a pixel of the result that a picture takes at its peak: result, reference, colour-fixed result, two planes."""
BUFFER_SHARE = 3 / 4
"""Part of the total memory that these may take: more would end in the system's killing the process."""
STRIP_WIDTH = 6000
PANEL_SIDE = 512
LABEL_HEIGHT = 32
LABEL_WIDTH = 112

EXPECTED = (CTSRError, ValueError, OSError, MemoryError, RuntimeError)
"""What may go wrong with one picture; torch raises RuntimeError."""


@dataclass(frozen=True)
class Job:
    """One picture to make: `source` is read, `target` written (for a sweep: the folder)."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `detail`: the size of the result, or the one sentence that says why there is none."""

    job: Job
    state: Literal["done", "skipped", "failed"]
    detail: str = ""


# ----------------------------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Options:
    """What is wanted of every picture; raises ValueError for what no picture can have.

    Attributes:
        t: the dial, 0 = most realistic, 1 = most faithful.
        scale: side of the result / side of the picture.
        size: width and height of the result in pixels instead of `scale`.
        tile: pixels of the result, 0 for automatic.
        color_fix: None is the checkpoint's own.
    """

    t: float = 0.5
    scale: float = 4.0
    size: tuple[int, int] | None = None
    tile: int = 0
    color_fix: ColorFix | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.t <= 1:
            raise ValueError(f"t must be from 0 (most realistic) to 1 (most faithful), not {self.t}.")
        if not 0 < self.scale <= MAX_SIDE:
            raise ValueError(f"The scale must be a positive number, such as 4, not {self.scale}.")
        if self.size is not None:
            check_size(self.size[1], self.size[0])
        check_tile(self.tile, None)

    def output_size(self, picture: Picture) -> tuple[int, int]:
        """Height and width of a picture's result."""
        width, height = self.size or (None, None)
        return output_size(picture.rgb, self.scale, height, width)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height from "1920x1080"; raises ValueError."""
    match = re.fullmatch(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", text)
    if match is None:
        raise ValueError(f"A size is written WIDTHxHEIGHT, such as 1920x1080, not {text!r}.")
    width, height = int(match[1]), int(match[2])
    check_size(height, width)
    return width, height


def parse_dials(text: str) -> list[float]:
    """The numbers in "0,0.5,1" in their order, each once; raises ValueError."""
    try:
        dials = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        dials = []
    if not dials or not all(0 <= dial <= 1 for dial in dials):
        raise ValueError(f"--t takes numbers from 0 to 1 with commas between, such as 0,0.5,1, not {text!r}.")
    return list(dict.fromkeys(dials))


@dataclass
class Model:
    """A pipeline that is loaded when the first picture needs it: a run in which none can be read loads nothing."""

    name: str
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        if not self.path.exists():
            what = (
                "The built-in model is missing from this installation" if self.name == "mini" else "There is no model"
            )
            raise CheckpointError(f"{what}: {self.path} does not exist; give a .safetensors file, a folder or 'mini'.")

    @property
    def path(self) -> Path:
        """The weights: a file or a folder."""
        return MINI_WEIGHTS if self.name == "mini" else Path(self.name)

    @cached_property
    def pipeline(self) -> CTSRPipeline:
        """The pipeline; raises CheckpointError if it cannot be loaded."""
        try:
            pipeline = load_pipeline(self.name, self.dtype, self.device)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read ({error.strerror or error}).") from error
        pipeline.set_attention_backend("auto")
        return pipeline

    def settings(self, options: Options) -> dict[str, str | float | int]:
        """What a picture was made with, for its text chunk."""
        size = {"scale": options.scale} if options.size is None else {"size": f"{options.size[0]}x{options.size[1]}"}
        return {
            "ctsr": __version__,
            "model": self.name if self.name == "mini" else self.path.resolve().name,
            "t": options.t,
            **size,
            "tile": options.tile,
            "color_fix": self.color_fix(options),
            "precision": str(self.dtype).removeprefix("torch."),
        }

    def color_fix(self, options: Options) -> ColorFix:
        """As asked, or the checkpoint's own."""
        return options.color_fix or self.pipeline.config["color_fix"]


# -------------------------------------------------------------------------------------------------------------- plan


def plan(inputs: Sequence[Path], output: str | None) -> list[Job]:
    """Which file becomes which.

    Args:
        inputs: files, and folders that are searched through and through for pictures.
        output: for one file a file or a folder, else a folder; None puts NAME-ctsr.png of every file into the current
            folder. A trailing slash makes it a folder. In a folder pictures keep their relative names, and their
            suffixes where the format can be written without loss of alpha, else .png.

    Raises:
        ValueError: no pictures; an output that is an input, or that two inputs share; no output for a folder.
        ImageWriteError: the output is a file of an unknown format.
    """
    folders = [path for path in inputs if path.is_dir()]
    if output is None:
        if folders:
            raise ValueError(f"{folders[0]} is a folder: say with -o into which folder its pictures go.")
        jobs = [Job(path, Path(f"{path.stem}-ctsr.png")) for path in inputs]
    elif is_one_file(inputs, output):
        output_suffix(output)
        jobs = [Job(inputs[0], Path(output))]
    else:
        jobs = plan_folder(inputs, folder_of(output))
    if not jobs:
        raise ValueError(f"No pictures in {', '.join(map(str, inputs))}: name a picture or a folder with pictures.")
    return checked(jobs)


def is_folder_name(output: str) -> bool:
    """Whether a folder is meant: it exists, ends in a slash, or has no suffix."""
    return output.endswith(("/", os.sep)) or os.path.isdir(output) or not Path(output).suffix


def is_one_file(inputs: Sequence[Path], output: str) -> bool:
    """Whether `output` names the file that a single input becomes."""
    return len(inputs) == 1 and not inputs[0].is_dir() and not is_folder_name(output)


def folder_of(output: str) -> Path:
    """`output` as a folder for several pictures; raises ValueError for what looks like a file, or is one."""
    path = Path(output)
    if path.is_file():
        raise ValueError(f"{output} is a file, but several pictures need a folder: name another with -o.")
    if not is_folder_name(output) and path.suffix.lower() in writable_suffixes():
        raise ValueError(
            f"{output} looks like one picture, but several need a folder: end it with a slash if it is one."
        )
    return path


def plan_folder(inputs: Sequence[Path], output: Path) -> list[Job]:
    """Jobs into a folder: relative names; where one that becomes PNG meets another it is NAME.gif.png instead."""
    sources: dict[Path, Path] = {}  # source -> name below `output`
    for path in inputs:
        if not path.is_dir():
            sources[path] = Path(path.name)
            continue
        if path.resolve() == output.resolve():
            raise ValueError(f"{output} is the input folder itself: name another with -o.")
        sources.update((picture, picture.relative_to(path)) for picture in find_pictures(path, output.resolve()))
    converted = {source: name.with_suffix(".png") for source, name in sources.items() if becomes_png(source)}
    wanted = Counter(converted.get(source, name) for source, name in sources.items())
    for source, name in converted.items():
        if wanted[name] > 1:
            converted[source] = sources[source].with_name(f"{source.name}.png")
    return [Job(source, output / converted.get(source, name)) for source, name in sources.items()]


def find_pictures(folder: Path, leave_out: Path) -> Iterator[Path]:
    """Pictures below a folder by their suffix, sorted; nothing hidden, nothing in `leave_out` (resolved)."""

    def unreadable(error: OSError) -> None:
        logger.warning("%s is left out (%s).", error.filename, error.strerror)

    suffixes = readable_suffixes()
    for root, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(root)
        folders[:] = sorted(x for x in folders if not x.startswith(".") and (here / x).resolve() != leave_out)
        for name in sorted(files):
            path = here / name
            if not name.startswith(".") and path.suffix.lower() in suffixes and (path.is_file() or path.is_symlink()):
                yield path


def readable_suffixes() -> frozenset[str]:
    """Suffixes of the stills that this Pillow reads, lower case with the dot."""
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, form in known if form in Image.OPEN and form not in WITHOUT_STILLS)


def becomes_png(source: Path) -> bool:
    """Whether writing a picture under its own suffix is impossible or would lose its alpha."""
    suffix = source.suffix.lower()
    if suffix not in writable_suffixes():
        return True
    if suffix not in WITHOUT_ALPHA:
        return False
    try:
        with Image.open(source) as image:
            return image.has_transparency_data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False  # the run will say what is wrong with it


def checked(jobs: Iterable[Job]) -> list[Job]:
    """The jobs, each once; raises ValueError where an output is an input, or of two different inputs."""
    sources = {key(job.source) for job in jobs}
    targets: dict[str, Job] = {}
    for job in jobs:
        if key(job.target) in sources:
            raise ValueError(f"{job.target} would overwrite an input: name another output with -o.")
        other = targets.setdefault(key(job.target), job)
        if key(other.source) != key(job.source):
            raise ValueError(f"{other.source} and {job.source} would both become {job.target}: run them one by one.")
    return list(targets.values())


def key(path: Path) -> str:
    """The same for the same file, whatever way it is named."""
    return os.path.normcase(path.resolve())


# --------------------------------------------------------------------------------------------------------------- run


def run(jobs: Iterable[Job], work: Callable[[Job], str], overwrite: bool) -> Iterator[Outcome]:
    """Does the jobs one after the other, up to the first whose folder takes no file.

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
            yield Outcome(job, "failed", sentence(error, job.source))
            if isinstance(error, OutputFolderError):
                return
        else:
            yield Outcome(job, "done", detail)


def sentence(error: Exception, path: Path) -> str:
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


# ---------------------------------------------------------------------------------------------------------- pictures


def check_picture(picture: Picture, target: Path, options: Options, device: torch.device) -> tuple[int, int]:
    """Height and width of the result; raises for one that cannot be made or written, before any work on it."""
    height, width = options.output_size(picture)
    check_size(height, width)
    output_suffix(target, height, width)
    check_target(target)
    check_room(height, width, device)
    return height, width


def check_room(height: int, width: int, device: torch.device) -> None:
    """Raises ValueError for a result whose picture buffers alone would not fit into the memory of `device`."""
    need, have = height * width * BUFFER_BYTES, BUFFER_SHARE * total_memory(device)
    if need > have:
        raise ValueError(
            f"The result of {width}x{height} pixels would take {need / 2**30:.1f} GiB of memory, and no more "
            f"than {have / 2**30:.1f} can be used here: choose a smaller size."
        )


def enlarged_alpha(picture: Picture, height: int, width: int) -> Tensor | None:
    """Alpha [1, 1, height, width] in [0, 1], bicubic, or None for a picture without."""
    return None if picture.alpha is None else resize(picture.alpha, height, width).clamp_(0, 1)


def start_noise() -> torch.Generator:
    """The same for every picture, so that none depends on those before; only some families draw from it."""
    return torch.Generator().manual_seed(0)


def upscale(job: Job, model: Model, options: Options, callback: Progress | None = None) -> str:
    """Makes one picture; returns its size. Raises what `read_picture`, the pipeline and `write_picture` raise."""
    picture = read_picture(job.source)
    height, width = check_picture(picture, job.target, options, model.device)
    images = model.pipeline(
        picture.rgb,
        t=options.t,
        height=height,
        width=width,
        tile=options.tile,
        color_fix=options.color_fix,
        generator=start_noise(),
        output_type="pt",
        return_dict=False,
        callback=callback,
    )[0]
    alpha = enlarged_alpha(picture, height, width)
    write_picture(job.target, cast(Tensor, images), picture, alpha, model.settings(options))
    return f"{width}x{height}"


def sweep(job: Job, model: Model, options: Options, dials: Sequence[float], callback: Progress | None = None) -> str:
    """NAME_t0.00.png and so on into the folder `job.target`, and NAME_strip.png with all of them side by side.

    One encode and one UNet pass for all t; `options.t` is not used. Returns what was made.
    """
    picture, stem = read_picture(job.source), job.source.stem
    height, width = check_picture(picture, job.target / f"{stem}.png", options, model.device)
    alpha = enlarged_alpha(picture, height, width)
    side = panel_side(len(dials) + 1)
    panels = [panel(resize(picture.rgb, height, width).clamp_(0, 1), alpha, "bicubic", side)]
    if not model.pipeline.family.has_dial:
        logger.warning("This model has no dial: the picture is the same for every t.")
    for t, rgb, settings in turn_dial(picture.rgb, height, width, model, options, dials, callback):
        write_picture(job.target / f"{stem}_t{dial_name(t)}.png", rgb, picture, alpha, settings)
        panels.append(panel(rgb, alpha, f"t = {dial_name(t)}", side))
    write_picture(job.target / f"{stem}_strip.png", torch.cat(panels, dim=3), picture)
    return f"{len(dials)} pictures of {width}x{height} and a strip"


def turn_dial(
    rgb: Tensor,
    height: int,
    width: int,
    model: Model,
    options: Options,
    dials: Iterable[float],
    callback: Progress | None = None,
) -> Iterator[tuple[float, Tensor, dict[str, str | float | int]]]:
    """Each t, its picture [1, 3, height, width] on the CPU and what that was made with; one encode, one UNet pass."""
    pipe, color_fix, tile = model.pipeline, model.color_fix(options), options.tile
    encoded = pipe.encode(rgb, height, width, tile=tile, callback=callback)
    ends = pipe.endpoints(encoded.latents, generator=start_noise(), tile=tile, callback=callback)
    for t in dials:
        z = pipe.blend(ends, t)
        result = pipe.decode(z, encoded.size, encoded.reference, color_fix, tile, callback=callback)
        yield t, result.cpu(), {**model.settings(options), "t": t}


def panel_side(panels: int) -> int:
    """Side in pixels of each of so many panels of a strip."""
    return max(LABEL_WIDTH, min(PANEL_SIDE, STRIP_WIDTH // panels))


def dial_name(t: float) -> str:
    """Two decimals, or as many as it takes to tell t."""
    short = f"{t:.2f}"
    return short if float(short) == t else f"{t!r}"


def panel(rgb: Tensor, alpha: Tensor | None, label: str, side: int) -> Tensor:
    """The middle of a picture, at most `side` a side, over white, below its label: [1, 3, h + LABEL_HEIGHT, w]."""
    top, left = (max(0, (length - side) // 2) for length in rgb.shape[-2:])
    middle = rgb[..., top : top + side, left : left + side]
    if alpha is not None:
        middle = 1 + (middle - 1) * alpha[..., top : top + side, left : left + side]
    height, width = middle.shape[-2:]
    image = Image.new("L", (max(width, LABEL_WIDTH), LABEL_HEIGHT))
    middle_of_bar = (image.width // 2, LABEL_HEIGHT // 2)
    ImageDraw.Draw(image).text(middle_of_bar, label, fill=255, font=ImageFont.load_default(20), anchor="mm")
    out = torch.zeros(1, 3, LABEL_HEIGHT + height, image.width)
    out[..., :LABEL_HEIGHT, :] = (
        torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.size[::-1]) / 255
    )
    start = (image.width - width) // 2
    out[..., LABEL_HEIGHT:, start : start + width] = middle.cpu()
    return out
