"""Scores of pictures beside their ground truth: PSNR, SSIM, the pattern, and learned metrics where they can be had.

What is scored is 8-bit RGB of the ground truth's size, no border cropped. The metrics are scikit-image's and, where it
is installed, pyiqa's (the protocol of OSEDiff, arXiv 2406.08177). Importing this module takes the extra `eval`.
"""

import importlib
import logging
import sys
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.color
import skimage.metrics
import torch
from PIL import Image

from ..assess.pattern import FixedPattern
from ..assess.perceptual import open_distances
from ..errors import first_line
from ..images.inputs import from_pil

logger = logging.getLogger(__name__)
_color: Any = skimage.color  # half of their types are unknown to pyright
_metrics: Any = skimage.metrics

PSNR, SSIM, FID, PATTERN = "PSNR-Y", "SSIM-Y", "FID", "pattern"
OF_SETS = (FID, PATTERN)
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
NO_REFERENCE = ("NIQE", "MUSIQ", "MANIQA", "CLIPIQA")
"""Those that see the result alone; the first that can be had is the perceptual axis of the plot."""
WINDOW = 11
"""Pixels of SSIM's Gaussian window a side, which a picture must hold."""
DIAL, BLEND, BICUBIC = "ctsr", "pixel blend", "bicubic"


@dataclass(frozen=True)
class Method:
    """What made a picture. `t`: the dial, for those that have one."""

    name: str
    t: float | None = None


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


def video_luma(picture: Image.Image) -> npt.NDArray[np.float64]:
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


def load_metrics(features: Path | None, device: torch.device) -> dict[str, Any]:
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
        with _optional(name, metrics), redirect_stdout(sys.stderr):
            metrics[name] = pyiqa.create_metric(own_name, device=device, as_loss=False)
    return metrics


@contextmanager
def _optional(name: str, metrics: dict[str, Any]) -> Generator[None, None, None]:
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
        metrics: as `load_metrics` returns them; one that fails is taken out.
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
        y = video_luma(truth)
        for method, result in results.items():
            values = {**_score_luma(video_luma(result), y), **self.score_perception(result, truth)}
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
        """Scores of one picture by all metrics that look at one, ours and pyiqa's."""
        x, y = (from_pil(picture).to(self.device) for picture in (result, truth))
        values: dict[str, float] = {}
        for name, metric in list(self.metrics.items()):
            if name != FID:
                with _optional(name, self.metrics), redirect_stdout(sys.stderr), torch.inference_mode():
                    values[name] = float(metric(x) if name in NO_REFERENCE else metric(x, y))
        return values

    def distances(self) -> dict[Method, float]:
        """FID of each method's pictures, or nothing where it cannot be had."""
        values: dict[Method, float] = {}
        if FID in self.metrics:
            fid, truth = self.metrics[FID], str(self.folder / "truth")
            with _optional(FID, self.metrics), redirect_stdout(sys.stderr):
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
                name: of_set[name] if name in OF_SETS else fmean(row[name] for row in rows) for name in metrics
            }
        return Scores(metrics, self.rows, means)
