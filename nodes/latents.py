"""What the host's own latent nodes did to a LATENT between two of ours, found by looking for the samples that we made.

Those nodes copy all entries of a LATENT and change its samples, or drop the entries. So every batch of samples that we
hand out is remembered for as long as somebody keeps it, and an incoming one is compared with them: the same pictures in
another number or order, mirrored or turned, cut out, resized, or changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_samples
from .values import Origin

if TYPE_CHECKING:
    from .host import HostModel
    from .progress import Work

KEY = "ctsr"
"""Of the entry in a LATENT."""
TURNS = range(8)
"""The 8 orientations: n % 4 quarter turns, and for n of 4 and more a mirror from top to bottom before them."""
ALIKE = 0.8
"""Least correlation of a resized latent with the one that it was made of; each channel's mean is subtracted before."""

Warn = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Entry:
    """Samples of a LATENT that we made, [B, C, h, w], and where they come from; they lie as `origin.turn` says."""

    samples: Tensor
    origin: Origin


@dataclass(frozen=True)
class Window:
    """The part of remembered samples that a sample shows: row of the batch, edges in cells as [top, left, h, w]."""

    entry: Entry
    row: int
    box: tuple[int, int, int, int]


remembered: WeakSet[Entry] = WeakSet()
"""All entries that somebody still keeps."""


def make_latent(samples: Tensor, origin: Origin) -> dict[str, Any]:
    """A LATENT: unscaled samples [B, C, h, w] in the network's orientation, turned as `origin` says, and its entry."""
    entry = Entry(turn(samples, origin.turn), origin)
    remembered.add(entry)
    return {"samples": entry.samples, KEY: entry}


def turn(x: Tensor, number: int) -> Tensor:
    """`x` [..., h, w], mirrored top to bottom where `number` is 4 or more, then turned by number % 4 quarters."""
    return torch.rot90(x.flip(-2) if number >= 4 else x, number % 4, dims=(-2, -1)) if number else x


def turn_back(x: Tensor, number: int) -> Tensor:
    """Undoes `turn`."""
    if not number:
        return x
    x = torch.rot90(x, -(number % 4), dims=(-2, -1))
    return x.flip(-2) if number >= 4 else x


def read_latent(latent: dict[str, Any], model_id: str, factor: int, warn: Warn) -> tuple[Tensor, Origin]:
    """Samples [B, C, h, w] of a LATENT in the network's orientation, and where they come from.

    In this order: untouched samples of ours; the same numbers in another order, turned, or a part of them; samples
    without an entry, of which only the size is known; ours resized or changed in place.

    Args:
        latent: `samples`, and perhaps an entry.
        model_id: of the checkpoint that will take them.
        factor: pixels a latent on each side.
        warn: is told in a sentence what could not be kept.

    Raises:
        ValueError: another checkpoint's latent, pictures of several sizes, or a change after which nobody knows where
            the padded border lies.
    """
    samples: Tensor = latent["samples"]
    entry: Entry | None = latent.get(KEY)
    if entry is not None and entry.origin.model_id != model_id:
        raise ValueError(
            f"latent was made by {entry.origin.model_id}, but this node has {model_id}: connect both to the same "
            "Load CTSR."
        )
    if entry is not None and entry.samples is samples:
        return turn_back(samples, entry.origin.turn), entry.origin
    candidates = [x for x in (entry, *remembered) if x is not None and x.origin.model_id == model_id]
    found = find_windows(samples, candidates)
    if found is not None:
        number, windows = found
        return turn_back(samples, number).contiguous(), merge_origins([crop_origin(x, factor) for x in windows], number)
    if entry is None:
        return samples, Origin(model_id, (samples.shape[-2] * factor, samples.shape[-1] * factor))
    return resized_or_changed(samples, entry, factor, warn)


# --- the same numbers elsewhere ------------------------------------------------------------------------------------


def find_windows(samples: Tensor, entries: Sequence[Entry]) -> tuple[int, list[Window]] | None:
    """The turn of a batch and the window that each of its samples shows, if all are parts of remembered ones."""
    numbers = sorted(TURNS, key=lambda number: all(number != entry.origin.turn for entry in entries))
    for number in numbers:
        windows: list[Window] = []
        for row, sample in enumerate(turn_back(samples, number)):
            hint = windows[-1] if windows else None
            window = next(windows_of(sample, entries, row, hint), None)
            if window is None:
                break
            windows.append(window)
        if len(windows) == len(samples):
            return number, windows
    return None


def windows_of(sample: Tensor, entries: Sequence[Entry], row: int, last: Window | None) -> Iterator[Window]:
    """Where a sample [C, h, w] lies in remembered ones; first looks at the likely rows: its own number, the next."""
    ordered = sorted(entries, key=lambda entry: last is not None and entry is not last.entry)
    for entry in ordered:
        rows = turn_back(entry.samples, entry.origin.turn)
        if sample.dtype != rows.dtype or sample.shape[0] != rows.shape[1]:
            continue
        likely = row if last is None else last.row + 1
        for index in sorted(range(len(rows)), key=lambda index: index != likely):
            place = find_part(rows[index], sample)
            if place is not None:
                yield Window(entry, index, (*place, sample.shape[-2], sample.shape[-1]))


def find_part(whole: Tensor, part: Tensor) -> tuple[int, int] | None:
    """Row and column at which `part` [C, h, w] begins in `whole` [C, H, W], or None."""
    (h, w), (height, width) = part.shape[-2:], whole.shape[-2:]
    if h > height or w > width:
        return None
    corners = (whole[0, : height - h + 1, : width - w + 1] == part[0, 0, 0]) & (
        whole[-1, h - 1 :, w - 1 :] == part[-1, -1, -1]
    )
    for top, left in corners.nonzero().tolist():
        if torch.equal(whole[:, top : top + h, left : left + w], part):
            return top, left
    return None


def crop_origin(window: Window, factor: int) -> Origin:
    """Where one sample comes from: the origin of a row and, where it shows a part of it, of that part alone."""
    origin = window.entry.origin.row(window.row)
    top, left, h, w = window.box
    rows = turn_back(window.entry.samples, origin.turn)
    if (h, w) == tuple(rows.shape[-2:]):
        return origin
    height, width = (max(side, 0) for side in (origin.size[0] - top * factor, origin.size[1] - left * factor))
    size = min(height, h * factor), min(width, w * factor)
    if 0 in size:
        raise ValueError(
            "latent was cut down to the border that pads the picture: cut out a part that shows some of the picture."
        )
    box = (top * factor, left * factor, *size)
    second = None if origin.second is None else origin.second[..., top : top + h, left : left + w]
    return replace(
        origin, size=size, reference=part_of(origin.reference, origin.size, box),
        alpha=part_of(origin.alpha, origin.size, box), second=second,
    )  # fmt: skip


def part_of(picture: Tensor | None, size: tuple[int, int], box: tuple[int, int, int, int]) -> Tensor | None:
    """A small picture [1, C, h, w] enlarged to `size`, and of that the part (top, left, height, width)."""
    from ..ctsr.images.tensors import resize

    top, left, height, width = box
    return None if picture is None else resize(picture, *size)[..., top : top + height, left : left + width].clamp(0, 1)


def merge_origins(origins: Sequence[Origin], number: int) -> Origin:
    """One origin of a batch whose samples come from these, all turned by `number`.

    Raises:
        ValueError: they cannot be one batch.
    """
    first = origins[0]
    sizes = {origin.size for origin in origins}
    if len(sizes) > 1:
        names = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise ValueError(f"latent holds pictures of several sizes ({names}): decode them apart, one batch a size.")
    if len({(origin.timestep, origin.seed) for origin in origins}) > 1:
        raise ValueError("latent holds pictures encoded at several timesteps or seeds: restore them apart.")

    def joined(name: str) -> Tensor | None:
        parts: list[Tensor | None] = [getattr(origin, name) for origin in origins]
        given = [part for part in parts if part is not None]
        fits = len(given) == len(parts) and len({part.shape for part in given}) == 1
        return torch.cat(given) if fits else None

    return replace(first, turn=number, reference=joined("reference"), alpha=joined("alpha"), second=joined("second"))


# --- other numbers -------------------------------------------------------------------------------------------------


def resized_or_changed(samples: Tensor, entry: Entry, factor: int, warn: Warn) -> tuple[Tensor, Origin]:
    """What is known of samples that hold none of the numbers of their entry.

    Raises:
        ValueError: not where the padded border lies.
    """
    origin, before = entry.origin, entry.samples
    if samples.shape == before.shape:
        warn("A node before this one changed the latent: alpha is left out, and colours are as they are decoded.")
        return turn_back(samples, origin.turn), replace(origin, reference=None, alpha=None, second=None)
    found = find_resized(samples, entry)
    if found is not None:
        number, windows = found
        upright = turn_back(samples, number).contiguous()
        origins = [replace(crop_origin(window, factor), second=None) for window in windows]
        return upright, merge_origins(
            [scale_origin(x, w, upright, factor) for x, w in zip(origins, windows, strict=True)], number
        )
    (height, width), (old_height, old_width) = samples.shape[-2:], before.shape[-2:]
    if sorted(origin.size) == sorted((old_height * factor, old_width * factor)):  # no border
        warn("A node before this one changed the latent's size or batch: colours are as they are decoded.")
        return samples, Origin(origin.model_id, (height * factor, width * factor))
    raise ValueError(
        f"latent was changed from {old_width}x{old_height} to {width}x{height} by a node before this one, so that the "
        "border that pads the picture cannot be told from it: ask Time-Aware Encode for a width and height that are "
        f"multiples of {8 * factor}, or take the host's VAE Decode."
    )


def find_resized(samples: Tensor, entry: Entry) -> tuple[int, list[Window]] | None:
    """The turn of a batch and the window that each sample is a resized copy of, as far as pictures tell, or None."""
    before = turn_back(entry.samples, entry.origin.turn)
    best: tuple[float, int, list[Window]] = (ALIKE, 0, [])
    for number in TURNS:
        upright = turn_back(samples, number)
        boxes = {(0, 0, before.shape[-2], before.shape[-1]), centre(before, upright)}
        windows = [Window(entry, row, box) for box in boxes for row in range(len(before))]
        likeness = correlate(upright, torch.cat([resized_part(before, box, upright) for box in boxes]))
        values, places = likeness.max(dim=1)
        if float(values.min()) > best[0]:
            best = float(values.min()), number, [windows[place] for place in places.tolist()]
    return (best[1], best[2]) if best[2] else None


def centre(before: Tensor, after: Tensor) -> tuple[int, int, int, int]:
    """The middle of `before` that has the proportions of `after`, as the host's `crop: center` cuts it."""
    (old_h, old_w), (new_h, new_w) = before.shape[-2:], after.shape[-2:]
    top = max(0, round((old_h - old_w * new_h / new_w) / 2))
    left = max(0, round((old_w - old_h * new_w / new_h) / 2))
    return top, left, old_h - 2 * top, old_w - 2 * left


def resized_part(before: Tensor, box: tuple[int, int, int, int], after: Tensor) -> Tensor:
    """A part of `before` [B, C, h, w] at the size of `after`."""
    top, left, h, w = box
    part = before[..., top : top + h, left : left + w].float()
    return F.interpolate(part, size=after.shape[-2:], mode="bilinear", antialias=True)


def correlate(one: Tensor, other: Tensor) -> Tensor:
    """Correlation of each of [B, C, h, w] with each of [B', C, h, w], [B, B']; mean of a channel left out."""
    flat = [(x.float() - x.float().mean(dim=(-2, -1), keepdim=True)).flatten(1) for x in (one, other)]
    return F.normalize(flat[0], dim=1) @ F.normalize(flat[1], dim=1).T


def scale_origin(origin: Origin, window: Window, after: Tensor, factor: int) -> Origin:
    """The origin of a window, of which `after` is a resized copy."""
    *_, h, w = window.box
    cells: tuple[int, int] = (after.shape[-2], after.shape[-1])
    size = [max(1, round(side * new / old)) for side, new, old in zip(origin.size, cells, (h, w), strict=True)]
    return replace(origin, size=(min(size[0], cells[0] * factor), min(size[1], cells[1] * factor)))


# --- for the nodes -------------------------------------------------------------------------------------------------


def receive(
    model: HostModel, latent: dict[str, Any], work: Work, pad_multiple: int | None = None
) -> tuple[Tensor, Origin]:
    """Checks a LATENT that a node was given, and returns it in the network's orientation, with its origin.

    Args:
        model: that will take the samples.
        latent: a LATENT.
        work: of the node.
        pad_multiple: pixels that sides must be multiples of; by default any number of latents will do.

    Raises:
        ValueError: samples that the model cannot take, or as `read_latent`.
    """
    factor = model.pipeline.vae_scale_factor
    check_samples(latent["samples"], model.latent_channels, (pad_multiple or factor) // factor)
    return read_latent(latent, model.model_id, factor, work.warn)
