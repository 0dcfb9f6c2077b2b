"""Scores a model against the ground truth: makes the pictures of every pair and has `metrics` score them.

Each t is scored beside the bicubic enlargement, the blend of the two pictures at the ends of the dial (the baseline of
CTSR, arXiv 2503.14272) and other people's results. What is scored is 8-bit RGB of the ground truth's size,
no border cropped, alpha left out. Nothing here prints or exits. Importing this module takes the extra `eval`.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ..errors import CheckpointError, CTSRError, ImageReadError
from ..images.picture import Picture
from ..images.read import read_picture
from ..images.strip import dial_name
from ..images.tensors import as_pil, resize
from ..images.write import write_picture
from ..tiling.tiled import Progress
from .lazy_pipeline import LazyPipeline
from .metrics import BICUBIC, BLEND, DIAL, WINDOW, Method, Scorer, Scores, load_metrics
from .options import Options
from .pairs import Pair
from .run import EXPECTED, describe_error, one_line
from .sizes import Size
from .upscale import check_picture, settings_of, turn_dial

logger = logging.getLogger(__name__)


class PictureError(CTSRError):
    """A picture that could be read failed in the work on it, so there are no scores of the set."""


@dataclass(frozen=True)
class Task:
    """What is wanted of every pair.

    Attributes:
        model: what is scored.
        options: tile and colour fix; t, scale and size are not used, a result has its ground truth's size.
        dials: values of t.
        others: names of the methods of `Pair.others`.
        out: the folder for the pictures, t_<t>/<stem>.png.
        features: folder of the weights of LPIPS and DISTS (`assess.perceptual`); None leaves them to pyiqa.
    """

    model: LazyPipeline
    options: Options
    dials: Sequence[float]
    others: Sequence[str]
    out: Path
    features: Path | None = None


# ------------------------------------------------------------------------------------------------------------ checks


def check_out(task: Task, inputs: Iterable[Path]) -> None:
    """Raises ValueError for an output folder that is a file, or whose pictures would land in a folder of inputs."""
    if task.out.exists() and not task.out.is_dir():
        raise ValueError(f"{task.out} is a file: name a folder with --out.")
    targets = {_dial_folder(task.out, t).resolve() for t in task.dials}
    for folder in inputs:
        if folder.resolve() in targets:
            raise ValueError(f"The pictures in {folder} would be overwritten: name another folder with --out.")


def problems(pairs: Iterable[Pair], task: Task) -> Iterator[str]:
    """Reads every file in full; a message for each pair that cannot be scored, before any work on them."""
    for pair in pairs:
        try:
            _check_pair(pair, task)
        except ImageReadError as error:
            yield one_line(error)
        except (CTSRError, ValueError) as error:
            yield describe_error(error, pair.lr)


def _check_pair(pair: Pair, task: Task) -> None:
    """Raises ImageReadError for a file that cannot be read, ValueError for sizes that do not fit."""
    low, high = read_picture(pair.lr), read_picture(pair.hr)
    factor = high.height // low.height
    if (high.height, high.width) != (factor * low.height, factor * low.width):
        raise ValueError(f"{pair.hr} has {_size_of(high)} pixels, not a whole multiple of {_size_of(low)}: crop it.")
    if min(high.height, high.width) < WINDOW:
        raise ValueError(f"{pair.hr} has {_size_of(high)} pixels, and SSIM needs {WINDOW} a side: leave it out.")
    for path in pair.others:
        if (size := _size_of(read_picture(path))) != _size_of(high):
            raise ValueError(f"{path} has {size} pixels and {pair.hr} {_size_of(high)}: they must be the same.")
    check_picture(low, _target(task.out, task.dials[0], pair), _sized(task.options, high), task.model.device)


def _size_of(picture: Picture) -> str:
    """ "WIDTHxHEIGHT"."""
    return f"{picture.width}x{picture.height}"


def _sized(options: Options, truth: Picture) -> Options:
    """The options for a result of the truth's size."""
    return replace(options, size=Size(size=(truth.width, truth.height)))


def _dial_folder(out: Path, t: float) -> Path:
    """Where the pictures of one t go."""
    return out / f"t_{dial_name(t)}"


def _target(out: Path, t: float, pair: Pair) -> Path:
    """Where the picture of a pair at one t goes."""
    return _dial_folder(out, t) / f"{pair.lr.stem}.png"


# ---------------------------------------------------------------------------------------------------------- pictures


def _make_results(
    pair: Pair, low: Picture, truth: Picture, task: Task, callback: Progress | None
) -> dict[Method, Image.Image]:
    """All pictures of a pair that are scored, 8-bit RGB of the ground truth's size; writes those of the dial."""
    dial = _write_dial(pair, low, truth, task, callback)
    results = {Method(DIAL, t): picture for t, picture in dial.items()}
    if {0, 1} <= dial.keys():
        inner = (t for t in dial if t not in (0, 1))
        results |= {Method(BLEND, t): _blend_pictures(dial[0], dial[1], t) for t in inner}
    results[Method(BICUBIC)] = as_pil(resize(low.rgb, truth.height, truth.width).clamp_(0, 1))
    for name, path in zip(task.others, pair.others, strict=True):
        results[Method(name)] = as_pil(read_picture(path).rgb)
    return results


def _write_dial(
    pair: Pair, low: Picture, truth: Picture, task: Task, callback: Progress | None
) -> dict[float, Image.Image]:
    """The picture at each t, written to `Task.out` as 8-bit RGB."""
    options = _sized(task.options, truth)
    like = replace(low, alpha=None, grey=False, bits=8, icc_profile=None if low.grey else low.icc_profile)
    results = turn_dial(low.rgb, (truth.height, truth.width), task.model, options, task.dials, callback)
    pictures: dict[float, Image.Image] = {}
    settings = settings_of(pair.lr, task.model, options)
    for t, rgb in results:
        write_picture(_target(task.out, t, pair), rgb, like, settings={**settings, "t": t})
        pictures[t] = as_pil(rgb)
    return pictures


def _blend_pictures(realistic: Image.Image, faithful: Image.Image, t: float) -> Image.Image:
    """(1 - t) * realistic + t * faithful of two 8-bit pictures, rounded (Pillow's own blend cuts off)."""
    z0, z1 = (np.asarray(picture, np.float64) for picture in (realistic, faithful))
    return Image.fromarray(np.rint((1 - t) * z0 + t * z1).astype(np.uint8))


# --------------------------------------------------------------------------------------------------------------- run


def evaluate(pairs: Iterable[Pair], task: Task, callback: Progress | None = None) -> Scores:
    """Makes and scores all pictures; `problems` has looked at the pairs.

    Raises:
        CheckpointError: the model cannot be loaded.
        PictureError: a picture failed; the message is one line.
    """
    if not task.model.pipeline.family.has_dial:
        logger.warning("This model has no dial: the picture is the same for every t.")
    with TemporaryDirectory(prefix="ctsr-") as folder:
        scorer = Scorer(load_metrics(task.features, task.model.device), task.model.device, Path(folder))
        for pair in pairs:
            try:
                low, truth = read_picture(pair.lr), read_picture(pair.hr)
                scorer.add(pair.lr.stem, as_pil(truth.rgb), _make_results(pair, low, truth, task, callback))
            except CheckpointError:
                raise
            except EXPECTED as error:
                raise PictureError(describe_error(error, pair.lr)) from error
        return scorer.scores()
