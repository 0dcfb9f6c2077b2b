"""Scores a model against the ground truth: pairs of pictures in; pictures, tables and a perception-distortion plot out.

Each t is scored beside the bicubic enlargement, the blend of the two pictures at the ends of the dial (the baseline of
CTSR, arXiv 2503.14272) and other people's results. What is scored is 8-bit RGB of the ground truth's size,
no border cropped, alpha left out. The metrics are scikit-image's and, where it is installed, pyiqa's (the protocol
of OSEDiff, arXiv 2406.08177). Nothing here prints or exits. Importing this module takes the extra `eval`.
"""

import csv
import importlib
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import skimage.color
import skimage.metrics
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..assess.pattern import FixedPattern
from ..assess.perceptual import open_distances
from ..errors import CheckpointError, CTSRError, ImageReadError, first_line
from ..images.inputs import from_pil
from ..images.picture import Picture
from ..images.read import read_picture, readable_suffixes
from ..images.strip import dial_name
from ..images.tensors import as_pil, resize
from ..images.write import write_picture
from ..tiling.tiled import Progress
from ..whole_file import whole_file
from .lazy_pipeline import LazyPipeline
from .options import Options
from .run import EXPECTED, describe_error, one_line
from .sizes import Size
from .upscale import check_picture, settings_of, turn_dial

logger = logging.getLogger(__name__)
_color: Any = skimage.color  # half of their types are unknown to pyright
_metrics: Any = skimage.metrics

PSNR, SSIM, FID, PATTERN = "PSNR-Y", "SSIM-Y", "FID", "pattern"
_OF_SETS = (FID, PATTERN)
"""Those of all pictures of a method at once."""
_PYIQA = {
    "NIQE": "niqe",
    "LPIPS": "lpips",
    "DISTS": "dists",
    "MUSIQ": "musiq",
    "MANIQA": "maniqa-pipal",
    "CLIPIQA": "clipiqa",
    FID: "fid",
}
"""Our names of pyiqa's metrics, and its own."""
_NO_REFERENCE = ("NIQE", "MUSIQ", "MANIQA", "CLIPIQA")
"""Those that see the result alone; the first that can be had is the perceptual axis of the plot."""
WINDOW = 11
"""Pixels of SSIM's Gaussian window a side, which a picture must hold."""
DIAL, BLEND, BICUBIC = "ctsr", "pixel blend", "bicubic"


class PictureError(CTSRError):
    """A picture that could be read failed in the work on it, so there are no scores of the set."""


@dataclass(frozen=True)
class Pair:
    """A low-resolution picture and its ground truth. `others`: other people's results for it, one for each method."""

    lr: Path
    hr: Path
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Method:
    """What made a picture. `t`: the dial, for those that have one."""

    name: str
    t: float | None = None


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


@dataclass(frozen=True)
class Row:
    """Scores of one method's picture, by the metric's name; those of sets are not among them."""

    picture: str
    method: Method
    values: Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """`metrics`: those that could be had for all pictures, and for each whether lower is better."""

    metrics: Mapping[str, bool]
    rows: Sequence[Row]
    means: Mapping[Method, Mapping[str, float]]


# ------------------------------------------------------------------------------------------------------------- pairs


def find_pairs(lr: Path, hr: Path, others: Sequence[Path]) -> list[Pair]:
    """Pairs the pictures of two folders, and of the folders of others' results, by their names without suffix.

    Raises:
        ValueError: not a folder; two pictures of one name; no pair at all; results of others that are missing.
    """
    low, high = by_stem(lr), by_stem(hr)
    stems = [stem for stem in low if stem in high]
    if not stems:
        raise ValueError(
            f"No picture in {lr} has its ground truth in {hr}: the names must be the same but for the suffix."
        )
    for folder, alone in ((lr, low.keys() - high), (hr, high.keys() - low)):
        if alone:
            logger.warning("%s: left out, being in one folder only: %s.", folder, listed(sorted(alone)))
    results = {folder: by_stem(folder) for folder in others}
    for folder, found in results.items():
        if missing := [stem for stem in stems if stem not in found]:
            raise ValueError(f"{folder} lacks the results of {listed(missing)}.")
    return [Pair(low[stem], high[stem], tuple(found[stem] for found in results.values())) for stem in stems]


def by_stem(folder: Path) -> dict[str, Path]:
    """Pictures in a folder (not below it) by their names without suffix, sorted; raises ValueError."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one with pictures.")
    suffixes = readable_suffixes()
    pictures: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or path.is_dir():
            continue
        if (other := pictures.setdefault(path.stem, path)) != path:
            raise ValueError(f"{other} and {path.name} have the same name but for the suffix: remove one of them.")
    return pictures


def listed(names: Sequence[str], most: int = 10) -> str:
    """The names with commas between, the first `most` of them."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Names of the methods whose results lie in folders: the folder's name, or its path where that is taken.

    Raises:
        ValueError: a folder is given twice.
    """
    paths = [folder.resolve() for folder in folders]
    if twice := [path for path, count in Counter(paths).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice: name each folder of results once.")
    taken = Counter([DIAL, BLEND, BICUBIC, *(path.name for path in paths)])
    return [path.name if taken[path.name] == 1 else str(path) for path in paths]


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
            check_pair(pair, task)
        except ImageReadError as error:
            yield one_line(error)
        except (CTSRError, ValueError) as error:
            yield describe_error(error, pair.lr)


def check_pair(pair: Pair, task: Task) -> None:
    """Raises ImageReadError for a file that cannot be read, ValueError for sizes that do not fit."""
    low, high = read_picture(pair.lr), read_picture(pair.hr)
    factor = high.height // low.height
    if (high.height, high.width) != (factor * low.height, factor * low.width):
        raise ValueError(f"{pair.hr} has {size_of(high)} pixels, not a whole multiple of {size_of(low)}: crop it.")
    if min(high.height, high.width) < WINDOW:
        raise ValueError(f"{pair.hr} has {size_of(high)} pixels, and SSIM needs {WINDOW} a side: leave it out.")
    for path in pair.others:
        if (size := size_of(read_picture(path))) != size_of(high):
            raise ValueError(f"{path} has {size} pixels and {pair.hr} {size_of(high)}: they must be the same.")
    check_picture(low, target(task.out, task.dials[0], pair), _sized(task.options, high), task.model.device)


def size_of(picture: Picture) -> str:
    """ "WIDTHxHEIGHT"."""
    return f"{picture.width}x{picture.height}"


def _sized(options: Options, truth: Picture) -> Options:
    """The options for a result of the truth's size."""
    return replace(options, size=Size(size=(truth.width, truth.height)))


def _dial_folder(out: Path, t: float) -> Path:
    """Where the pictures of one t go."""
    return out / f"t_{dial_name(t)}"


def target(out: Path, t: float, pair: Pair) -> Path:
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
        write_picture(target(task.out, t, pair), rgb, like, settings={**settings, "t": t})
        pictures[t] = as_pil(rgb)
    return pictures


def _blend_pictures(realistic: Image.Image, faithful: Image.Image, t: float) -> Image.Image:
    """(1 - t) * realistic + t * faithful of two 8-bit pictures, rounded (Pillow's own blend cuts off)."""
    z0, z1 = (np.asarray(picture, np.float64) for picture in (realistic, faithful))
    return Image.fromarray(np.rint((1 - t) * z0 + t * z1).astype(np.uint8))


# ----------------------------------------------------------------------------------------------------------- metrics


def luma(picture: Image.Image) -> npt.NDArray[np.float64]:
    """Y of BT.601 in 16..235 of an 8-bit RGB picture, [H, W], not rounded."""
    return _color.rgb2ycbcr(np.asarray(picture))[..., 0]


def _score_luma(y: npt.NDArray[np.float64], truth: npt.NDArray[np.float64]) -> dict[str, float]:
    """PSNR in dB (infinite for equal pictures) and SSIM as Wang et al. 2004 computed it, of two Y planes [H, W]."""
    with np.errstate(divide="ignore"):
        psnr = _metrics.peak_signal_noise_ratio(truth, y, data_range=255)
    ssim = _metrics.structural_similarity(
        truth, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    return {PSNR: float(psnr), SSIM: float(ssim)}


def _load_metrics(features: Path | None, device: torch.device) -> dict[str, Any]:
    """LPIPS and DISTS with the weights of a folder, where one is given, and the others of `_load_pyiqa`."""
    own = open_distances(features, device) if features else {}
    return own | _load_pyiqa({name: theirs for name, theirs in _PYIQA.items() if name not in own}, device)


def _load_pyiqa(wanted: Mapping[str, str], device: torch.device) -> dict[str, Any]:
    """pyiqa's metrics by our names (`wanted`: ours and its own), called with [1, 3, H, W] in [0, 1], FID with folders.

    Those that cannot be had are left out with a warning, whatever is wrong with pyiqa, torchvision or the download of
    a metric's weights.
    """
    metrics: dict[str, Any] = {}
    try:
        pyiqa: Any = importlib.import_module("pyiqa")
    except Exception as error:
        reason = f'pyiqa cannot be imported ({first_line(error)}); pip install "ctsr[iqa]"'
        logger.warning("%s are left out: %s.", ", ".join(wanted), reason)
        return metrics
    for name, own_name in wanted.items():
        with optional(name, metrics), redirect_stdout(sys.stderr):
            metrics[name] = pyiqa.create_metric(own_name, device=device, as_loss=False)
    return metrics


@contextmanager
def optional(name: str, metrics: dict[str, Any]) -> Generator[None, None, None]:
    """Takes a metric out of `metrics` with a warning if it fails, whatever it raises: it is others' code and data."""
    try:
        yield
    except Exception as error:
        logger.debug("%s", name, exc_info=True)
        logger.warning("%s is left out: %s", name, first_line(error))
        metrics.pop(name, None)


class Scorer:
    """Scores pictures as they come.

    Args:
        metrics: as `_load_metrics` returns them; one that fails is taken out.
        device: where they run.
        folder: an empty one for what FID reads: "truth" and a number for each method.
    """

    def __init__(self, metrics: dict[str, Any], device: torch.device, folder: Path):
        self.metrics = metrics
        self.device = device
        self.folder = folder
        self.rows: list[Row] = []
        self.folders: dict[Method, Path] = {}
        self.patterns: dict[Method, FixedPattern] = defaultdict(FixedPattern)

    def add(self, name: str, truth: Image.Image, results: Mapping[Method, Image.Image]) -> None:
        """Scores all results for one picture, which must be of the ground truth's size."""
        y = luma(truth)
        for method, result in results.items():
            values = {**_score_luma(luma(result), y), **self.score_perception(result, truth)}
            self.rows.append(Row(name, method, values))
            self.patterns[method].add(np.asarray(result))
            self.folders.setdefault(method, self.folder / str(len(self.folders)))
        if FID in self.metrics:
            self.save(name, self.folder / "truth", truth)
            for method, result in results.items():
                self.save(name, self.folders[method], result)

    @staticmethod
    def save(name: str, folder: Path, picture: Image.Image) -> None:
        """A PNG for FID."""
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{name}.png", compress_level=1)

    def score_perception(self, result: Image.Image, truth: Image.Image) -> dict[str, float]:
        """pyiqa's scores of one picture."""
        x, y = (from_pil(picture).to(self.device) for picture in (result, truth))
        values: dict[str, float] = {}
        for name, metric in list(self.metrics.items()):
            if name != FID:
                with optional(name, self.metrics), redirect_stdout(sys.stderr), torch.inference_mode():
                    values[name] = float(metric(x) if name in _NO_REFERENCE else metric(x, y))
        return values

    def distances(self) -> dict[Method, float]:
        """FID of each method's pictures, or nothing where it cannot be had."""
        values: dict[Method, float] = {}
        if FID in self.metrics:
            fid, truth = self.metrics[FID], str(self.folder / "truth")
            with optional(FID, self.metrics), redirect_stdout(sys.stderr):
                for method, folder in self.folders.items():
                    values[method] = float(fid(str(folder), truth, verbose=False))
        return values

    def scores(self) -> Scores:
        """What has been found so far, with the means over the pictures."""
        distances = self.distances()
        lower_better = {name: bool(getattr(metric, "lower_better", True)) for name, metric in self.metrics.items()}
        metrics = {PSNR: False, SSIM: False, PATTERN: True, **lower_better}
        means: dict[Method, dict[str, float]] = {}
        for method in self.folders:
            rows = [row.values for row in self.rows if row.method == method]
            of_set = {PATTERN: self.patterns[method].peak(), FID: distances.get(method, np.nan)}
            means[method] = {
                name: of_set[name] if name in _OF_SETS else fmean(row[name] for row in rows) for name in metrics
            }
        return Scores(metrics, self.rows, means)


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
        scorer = Scorer(_load_metrics(task.features, task.model.device), task.model.device, Path(folder))
        for pair in pairs:
            try:
                low, truth = read_picture(pair.lr), read_picture(pair.hr)
                scorer.add(pair.lr.stem, as_pil(truth.rgb), _make_results(pair, low, truth, task, callback))
            except CheckpointError:
                raise
            except EXPECTED as error:
                raise PictureError(describe_error(error, pair.lr)) from error
        return scorer.scores()


def write_scores(scores: Scores, out: Path) -> list[Path]:
    """scores.csv (means), per_picture.csv and perception_distortion.png into a folder; returns their paths."""
    means = out / "scores.csv"
    write_csv(
        means,
        ["name", "t", *scores.metrics],
        ([method.name, method.t, *values.values()] for method, values in scores.means.items()),
    )
    per_picture, columns = out / "per_picture.csv", [name for name in scores.metrics if name not in _OF_SETS]
    write_csv(
        per_picture,
        ["picture", "name", "t", *columns],
        ([row.picture, row.method.name, row.method.t, *(row.values[x] for x in columns)] for row in scores.rows),
    )
    plot = out / "perception_distortion.png"
    with whole_file(plot) as partial:
        figure: Any = draw(scores)
        figure.savefig(partial, format="png", dpi=150)
    return [means, per_picture, plot]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> None:
    """A table in UTF-8; None is an empty field."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def draw(scores: Scores) -> Figure:
    """PSNR against the first no-reference metric that could be had, else SSIM: curves over t, and points."""
    y_name = next((name for name in _NO_REFERENCE if name in scores.metrics), SSIM)
    points = {method: (values[PSNR], values[y_name]) for method, values in scores.means.items()}
    curves: dict[str, dict[float | None, tuple[float, float]]] = {}
    for method, point in points.items():
        if np.isfinite(point).all():
            curves.setdefault(method.name, {})[method.t] = point
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes: Any = figure.add_subplot(  # half of its types are unknown to pyright
        xlabel=f"{PSNR} in dB (higher is better)",
        ylabel=f"{y_name} ({'lower' if scores.metrics[y_name] else 'higher'} is better)",
        title="Perception and distortion",
    )
    for name, curve in curves.items():
        if name == BLEND:  # it ends where the dial ends
            curve |= {t: point for t, point in curves.get(DIAL, {}).items() if t in (0, 1)}
        xs, ys = zip(*(curve[t] for t in sorted(curve, key=lambda t: t or 0)), strict=True)
        style = {DIAL: "o-", BLEND: "s--"}.get(name, "D")
        axes.plot(xs, ys, style, label=name, zorder=3 if name == DIAL else 2)
    for t, point in curves.get(DIAL, {}).items():
        axes.annotate(f"t = {cast(float, t):g}", point, textcoords="offset points", xytext=(6, -12))
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
