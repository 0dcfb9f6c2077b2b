"""One picture from file to file: upscaled at one t, or swept over several."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..assess.auto_t import Choice
from ..images.formats import output_format
from ..images.frames import Frames, Kind, look_for_frames
from ..images.picture import Picture
from ..images.read import read_picture
from ..images.settings import Settings
from ..images.strip import dial_name, panel, panel_side
from ..images.tensors import check_size, resize
from ..images.write import Frame, check_target, write_frames, write_picture
from ..runtime.memory import BUFFER_SHARE, check_room
from ..tiling.memory import total_memory
from ..tiling.tiled import Progress
from ..whole_file import digest
from .jobs import Job
from .lazy_pipeline import LazyPipeline
from .options import Options

logger = logging.getLogger(__name__)

FRAME_BYTES = 5
"""Bytes per pixel of a frame that is finished, with what its encoder adds."""


def check_picture(
    picture: Picture, target: Path, options: Options, device: torch.device, kind: Kind = "", count: int = 1
) -> tuple[int, int]:
    """Height and width of the result; raises for one that cannot be made or written, before any work on it."""
    height, width = options.size.of(picture.height, picture.width)
    check_size(height, width)
    output_format(target, height, width, options.encoding, kind)
    check_target(target)
    check_room(height, width, device)
    if kind == "animation":
        check_room_for_frames(height, width, count)
    options.size.warn_of_distortion(target, picture.height, picture.width)
    return height, width


def check_room_for_frames(height: int, width: int, count: int) -> None:
    """Raises ValueError for an animation whose finished frames, all of which are kept to the end, take too much."""
    need, have = count * height * width * FRAME_BYTES, total_memory(torch.device("cpu")) * BUFFER_SHARE
    if need > have:
        raise ValueError(
            f"{count} frames of {width}x{height} pixels would take {need / 2**30:.1f} GiB of memory, and no more than "
            f"{have / 2**30:.1f} can be used here: choose a smaller size."
        )


def enlarged_alpha(picture: Picture, height: int, width: int) -> Tensor | None:
    """Alpha [1, 1, height, width] in [0, 1], bicubic, or None for a picture without."""
    return None if picture.alpha is None else resize(picture.alpha, height, width).clamp_(0, 1)


def start_noise() -> torch.Generator:
    """The same for every picture, so that none depends on those before; only some families draw from it."""
    return torch.Generator().manual_seed(0)


def settings_of(source: Path, model: LazyPipeline, options: Options) -> Settings:
    """What the result of a picture is made of, and with."""
    return {**model.settings(options), "source": digest(source)}


def upscale(job: Job, model: LazyPipeline, options: Options, callback: Progress | None = None) -> str:
    """Makes one picture, animation or document; returns its size.

    Raises what `read_picture`, the pipeline and `write_picture` raise.
    """
    frames = look_for_frames(job.source)
    if frames.kind != "":
        return upscale_frames(frames, frames.kind, job, model, options, callback)
    picture = read_picture(job.source, keep_metadata=not options.strip_metadata)
    height, width = check_picture(picture, job.target, options, model.device)
    rgb, alpha, choices = restore(picture, height, width, model, options, callback)
    settings = settings_of(job.source, model, options)
    write_picture(job.target, rgb, picture, alpha, settings, options.encoding)
    return f"{width}x{height}" + "".join(f", {'; '.join(choice.reasons)}" for choice in choices)


def upscale_frames(
    frames: Frames,
    kind: Literal["animation", "pages"],
    job: Job,
    model: LazyPipeline,
    options: Options,
    callback: Progress | None = None,
) -> str:
    """Makes an animation or document, a frame at a time, all at the same t; returns its size. Raises as `upscale`."""
    sizes: list[str] = []
    settled = [options]

    def results() -> Iterator[Frame]:
        for picture, duration in frames.read(keep_metadata=not options.strip_metadata):
            size = check_picture(picture, job.target, options, model.device, kind, len(frames.indices))
            if not sizes and kind == "animation":
                settled.append(one_t(picture, *size, model, options, callback))
            rgb, alpha, _ = restore(picture, *size, model, settled[-1], callback)
            sizes.append(f"{size[1]}x{size[0]}")
            yield Frame(rgb, picture, alpha, duration)

    settings = settings_of(job.source, model, options)
    write_frames(job.target, results(), kind, frames.plays, settings, options.encoding)
    return f"{len(sizes)} {'frames' if kind == 'animation' else 'pages'} of {', '.join(dict.fromkeys(sizes))}"


def one_t(
    picture: Picture, height: int, width: int, model: LazyPipeline, options: Options, callback: Progress | None
) -> Options:
    """The options for all frames of an animation, whose `t`, if it is chosen by what is seen, is that of the first."""
    if options.t != "auto":
        return options
    _, _, choices = restore(picture, height, width, model, options, callback)
    logger.info("t = %.2f for all frames, by the first.", choices[0].t)
    return replace(options, t=choices[0].t)


def restore(
    picture: Picture,
    height: int,
    width: int,
    model: LazyPipeline,
    options: Options,
    callback: Progress | None = None,
) -> tuple[Tensor, Tensor | None, Sequence[Choice]]:
    """Colours [1, 3, height, width], alpha [1, 1, height, width] if it has any, and what was chosen for a picture."""
    result = model.pipeline(
        picture.rgb,
        t=options.t,
        height=height,
        width=width,
        tile=options.tile,
        color_fix=options.color_fix,
        generator=start_noise(),
        output_type="pt",
        callback=callback,
    )
    return result.images, enlarged_alpha(picture, height, width), result.choices or ()


def sweep(
    job: Job, model: LazyPipeline, options: Options, dials: Sequence[float], callback: Progress | None = None
) -> str:
    """NAME_t0.00.png and so on into the folder `job.target`, and NAME_strip.png with all of them side by side.

    One encode and one UNet pass for all t; `options.t` is not used. Returns what was made.
    """
    picture, stem = read_picture(job.source, keep_metadata=not options.strip_metadata), job.source.stem
    height, width = check_picture(picture, job.target / f"{stem}.png", options, model.device)
    alpha = enlarged_alpha(picture, height, width)
    side = panel_side(len(dials) + 1)
    panels = [panel(resize(picture.rgb, height, width).clamp_(0, 1), alpha, "bicubic", side)]
    if not model.pipeline.family.has_dial:
        logger.warning("This model has no dial: the picture is the same for every t.")
    settings = settings_of(job.source, model, options)
    for t, rgb in turn_dial(picture.rgb, (height, width), model, options, dials, callback):
        write_picture(job.target / f"{stem}_t{dial_name(t)}.png", rgb, picture, alpha, {**settings, "t": t})
        panels.append(panel(rgb, alpha, f"t = {dial_name(t)}", side))
    write_picture(job.target / f"{stem}_strip.png", torch.cat(panels, dim=3), picture)
    return f"{len(dials)} pictures of {width}x{height} and a strip"


def turn_dial(
    rgb: Tensor,
    size: tuple[int, int],
    model: LazyPipeline,
    options: Options,
    dials: Sequence[float],
    callback: Progress | None = None,
) -> Iterator[tuple[float, Tensor]]:
    """Each t and its picture [1, 3, *size] on the CPU; one encode, one UNet pass."""
    results = model.pipeline.sweep(
        rgb,
        size,
        dials,
        generator=start_noise(),
        color_fix=options.color_fix,
        tile=options.tile,
        callback=callback,
    )
    for t, result in zip(dials, results, strict=True):
        yield t, result.cpu()
