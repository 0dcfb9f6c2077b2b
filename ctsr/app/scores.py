"""What `ctsr evaluate` leaves of its scores: two tables and a perception-distortion plot. Needs the extra `eval`."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure

from ..whole_file import whole_file
from .metrics import BLEND, DIAL, NO_REFERENCE, OF_SETS, PSNR, SSIM, Scores


def write_scores(scores: Scores, out: Path) -> list[Path]:
    """scores.csv (means), per_picture.csv and perception_distortion.png into a folder; returns their paths."""
    means = out / "scores.csv"
    write_csv(
        means,
        ["name", "t", *scores.metrics],
        ([method.name, method.t, *values.values()] for method, values in scores.means.items()),
    )
    per_picture, columns = out / "per_picture.csv", [name for name in scores.metrics if name not in OF_SETS]
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
    y_name = next((name for name in NO_REFERENCE if name in scores.metrics), SSIM)
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
