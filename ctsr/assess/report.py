"""The fidelity report: what a result changed of its input, in numbers, maps and sentences."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..images.tensors import resize
from .blocks import blocks
from .blur import Blur, blur
from .camera import QUANTISATION, Camera, fit_camera, moved
from .detail import added_detail, clipped, halo, lost_detail, sharpening
from .limits import CONTRAST, LIMITS
from .noise import noise_level
from .seams import Seam, seams
from .windows import Box, boxes, local_mean, local_rms, luma

Kind = Literal["foreign", "plastic", "cast", "shift", "seam", "sharpened", "clipped"]
RADIUS = 2
"""Pixels of the input around each that its departure is averaged over."""
CELL = 4
"""Pixels of the input a side of the squares that findings are made of."""
MOST = 8
"""Findings of a kind, at most; the largest."""


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        kind: what it is.
        value: how much, in the unit that `text` names.
        box: left, top, right, bottom in pixels of the result, None for the whole picture.
        text: a sentence.
    """

    kind: Kind
    value: float
    box: Box | None
    text: str


@dataclass(frozen=True)
class Report:
    """What a result changed of its input.

    Attributes:
        noise: standard deviation of the input's noise, in [0, 1].
        blur: of the input, in its pixels; None where no edge tells.
        blocks: JPEG's squares in the input, a step in [0, 1].
        camera: how the result comes back to the input.
        shift: how far the result lies to the right of the input and below it, in pixels of the result; a whole pixel or
            more is taken back before anything else is measured.
        departure: rms difference of the returned result from the input, as a multiple of the input's noise (at least
            half a level of 8 bits): 1 is as much as the noise itself.
        departure_map: the same around each pixel of the input, in units of the difference that is tolerated there, see
            `departure_map`, [1, 1, h, w].
        added: mean of `added_map`.
        added_map: detail beyond the faithful result's, beside the contrast there, [1, 1, H, W] in [0, 1].
        lost_map: texture that is gone, [1, 1, h, w] in [0, 1].
        sharpening: see `detail.sharpening`.
        halo: overshoot beside edges as a part of their height, see `detail.halo`.
        clipped: part of the result that is newly black or white.
        seams: straight steps; findings leave them out where the result is sharpened too far, whose halos look alike.
        findings: what goes beyond `limits.LIMITS`, most serious first.
    """

    noise: float
    blur: Blur | None
    blocks: float
    camera: Camera
    shift: tuple[float, float]
    departure: float
    departure_map: Tensor
    added: float
    added_map: Tensor
    lost_map: Tensor
    sharpening: float
    halo: float
    clipped: float
    seams: list[Seam]
    findings: list[Finding]


def report(picture: Tensor, result: Tensor, faithful: Tensor | None = None) -> Report:
    """Compares a result with its input.

    Args:
        picture: the input, [1, 3, h, w] fp32 in [0, 1].
        result: [1, 3, H, W] fp32 in [0, 1], no smaller.
        faithful: the model's result at t = 1, which what was added is measured against; the input enlarged bicubically
            by default.

    Raises:
        ValueError: shapes that do not belong together.
    """
    check_pair(picture, result, faithful)
    scale = (result.shape[-1] / picture.shape[-1] + result.shape[-2] / picture.shape[-2]) / 2
    reference = resize(picture, *result.shape[-2:]).clamp_(0, 1) if faithful is None else faithful
    noise, steps = noise_level(picture), blocks(picture)
    camera = fit_camera(picture, result)
    shift = (scale * camera.shift[0], scale * camera.shift[1])
    if max(map(abs, shift)) > LIMITS.shift:  # all else is judged where the result belongs
        result = moved(result, -round(shift[0]), -round(shift[1]))
        camera = fit_camera(picture, result)
    added_map = added_detail(result, reference, scale)
    unit = max(noise, QUANTISATION)
    departs = departure_map(picture, camera, unit)
    whole = Report(
        noise=noise,
        blur=blur(picture, noise),
        blocks=steps,
        camera=camera,
        shift=shift,
        departure=float(camera.residual.square().mean().sqrt()) / unit,
        departure_map=departs,
        added=float(added_map.mean()),
        added_map=added_map,
        lost_map=lost_detail(picture, camera, noise, steps),
        sharpening=0.0 if faithful is None else sharpening(result, faithful, scale),
        halo=halo(picture, result, noise, departs <= LIMITS.departure),
        clipped=clipped(picture, result),
        seams=seams(camera.residual),
        findings=[],
    )
    whole.findings.extend([*places(whole, scale), *whole_picture(whole, scale)])
    return whole


def check_pair(picture: Tensor, result: Tensor, faithful: Tensor | None) -> None:
    """Raises ValueError for pictures of which one is not the other's result."""
    (height, width), (large_height, large_width) = picture.shape[-2:], result.shape[-2:]
    across, down = large_width / width, large_height / height
    if min(across, down) < 1:
        raise ValueError(
            f"The result ({large_width}x{large_height}) is smaller than its input ({width}x{height}): name the input "
            "first."
        )
    tolerance = 1 + 2 / min(large_height, large_width) + 2 / min(height, width)
    if max(across / down, down / across) > tolerance:
        raise ValueError(
            f"A result of {large_width}x{large_height} has not the shape of its input, {width}x{height}: give a result "
            "that was neither cropped nor rotated."
        )
    if faithful is not None and faithful.shape != result.shape:
        raise ValueError("The faithful result must have the size of the result.")


def departure_map(picture: Tensor, camera: Camera, unit: float) -> Tensor:
    """rms of the residual around each pixel, in units of the difference that is tolerated there: [1, 1, h, w].

    Tolerated are `unit` (the noise), or what half of the picture departs by if that is more (noise that JPEG hides),
    and beside it the part of the local contrast by which contrasty places depart in the median, at least `CONTRAST`.
    """
    grey, departs = luma(picture), local_rms(camera.residual, RADIUS)
    variance = (local_mean(grey.square(), RADIUS) - local_mean(grey, RADIUS).square()).clamp_min(0)
    usual = max(unit, float(departs.median()))
    contrasty = variance >= max(float(variance.median()), 1e-6)
    part = max(CONTRAST, float((departs[contrasty].square() / variance[contrasty]).median()) ** 0.5)
    return departs / (usual**2 + part**2 * variance).sqrt()


def places(report: Report, scale: float) -> list[Finding]:
    """Findings that lie somewhere: foreign things, smoothed texture."""
    plastic = report.lost_map > LIMITS.lost
    if float(plastic.float().mean()) < LIMITS.lost_area:
        plastic = plastic & False
    foreign = (report.departure_map > LIMITS.departure) & ~(local_mean(plastic.float(), 3 * RADIUS) > 0)
    found = list[Finding]()
    for box in boxes(foreign, CELL)[:MOST]:
        left, top, right, bottom = box
        value = float(report.departure_map[..., top:bottom, left:right].max())
        place = enlarge(box, scale)
        text = f"at {at(place)} something differs from the input by {value:.1f} times what is tolerated"
        found.append(Finding("foreign", value, place, text))
    for box in boxes(plastic, CELL)[:MOST]:
        left, top, right, bottom = box
        value = float(report.lost_map[..., top:bottom, left:right][plastic[..., top:bottom, left:right]].mean())
        place = enlarge(box, scale)
        text = f"at {at(place)} texture was smoothed away: {value:.0%} of the input's fine detail is missing"
        found.append(Finding("plastic", value, place, text))
    return found


def enlarge(box: Box, scale: float) -> Box:
    """A box of the input in pixels of the result."""
    left, top, right, bottom = (round(scale * side) for side in box)
    return left, top, right, bottom


def at(box: Box) -> str:
    """A box in words."""
    left, top, right, bottom = box
    return f"x {left} to {right}, y {top} to {bottom},"


def whole_picture(report: Report, scale: float) -> list[Finding]:
    """Findings about the whole picture: colours, place, sharpening, seams, clipped areas."""
    found = list[Finding]()
    cast = max(report.camera.cast, key=abs)
    if abs(cast) > LIMITS.cast:
        red, green, blue = (round(255 * value, 1) + 0.0 for value in report.camera.cast)  # no "-0"
        text = f"the colours are off by {red:+g}, {green:+g}, {blue:+g} of 255 (red, green, blue)"
        found.append(Finding("cast", abs(cast) * 255, None, text))
    right, down = report.shift
    if max(abs(right), abs(down)) > LIMITS.shift:
        text = f"the result lies {right:+.1f} pixels to the right of the input and {down:+.1f} below it"
        found.append(Finding("shift", max(abs(right), abs(down)), None, text))
    sharpened = report.halo > LIMITS.halo or report.sharpening > LIMITS.sharpening
    for seam in [] if sharpened else report.seams[:MOST]:  # halos along straight edges look like seams
        start, end, place = (round(scale * value) for value in (seam.start, seam.end, seam.place))
        where = f"x = {place}, y = {start} to {end}" if seam.vertical else f"y = {place}, x = {start} to {end}"
        box = (place, start, place, end) if seam.vertical else (start, place, end, place)
        text = f"a seam of {255 * seam.step:.1f} of 255 at {where}"
        found.append(Finding("seam", seam.step * 255, box, text))
    if sharpened:
        text = f"sharpened too far: halos of {report.halo:.1%} of the edges' height"
        if report.sharpening > LIMITS.sharpening:
            text += f", {report.sharpening:.0%} more of the detail that t = 1 shows"
        found.append(Finding("sharpened", max(report.halo, report.sharpening), None, text))
    if report.clipped > LIMITS.clipped:
        text = f"{report.clipped:.1%} of the result is black or white where the input is not"
        found.append(Finding("clipped", report.clipped, None, text))
    return found


def rows(found: Report) -> Iterator[tuple[str, str]]:
    """The report's numbers as a person reads them."""
    yield "input: noise", f"σ {255 * found.noise:.1f} of 255"
    if found.blur is not None:
        yield "input: blur", f"{found.blur.lens:.1f} px at the sharpest edges, {found.blur.scene:.1f} px at most"
    yield "input: JPEG squares", f"{255 * found.blocks:.1f} of 255"
    yield "departs from the input by", f"{found.departure:.2f} × its noise"
    yield "detail added", f"{found.added:.0%} of the fine contrast"
    yield "colour cast", ", ".join(f"{255 * value:+.1f}" for value in found.camera.cast) + " of 255 (r, g, b)"
    yield "shift", f"{found.shift[0]:+.2f}, {found.shift[1]:+.2f} px"
    yield "halos", f"{found.halo:.1%} of the edges' height"
    yield "newly black or white", f"{found.clipped:.2%}"
    yield "seams", str(len(found.seams))


def lines(found: Report) -> list[str]:
    """A report as text: findings, then numbers."""
    findings = [f"• {finding.text}" for finding in found.findings] or ["Nothing to report."]
    return [*findings, *(f"{name}: {value}" for name, value in rows(found))]
