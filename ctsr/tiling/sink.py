"""A result that is put together tile by tile, perhaps on another device."""

from collections import deque
from typing import Any

import torch
from torch import Tensor


class Sink:
    """A result that is put together from tiles, on another device than theirs perhaps.

    From a CUDA device a tile is copied to pinned memory after its computation, and put in its place once the next tile
    is under way: this thread waits for no tile before it has told the device what to do next.

    Args:
        size: height and width of the result.
        device: where it lies.
        dtype: of the result; that of the tiles by default.
        add: tiles are added up, not put beside each other.
    """

    def __init__(
        self, size: tuple[int, int], device: torch.device, dtype: torch.dtype | None = None, *, add: bool = False
    ):
        self.size, self.device, self.dtype, self.add = size, device, dtype, add
        self.out: Tensor | None = None
        self.waiting: deque[tuple[Any, Tensor, torch.cuda.Event]] = deque()

    def write(self, place: Any, y: Tensor) -> None:
        """Puts a tile [B, C, h, w] at the index `place` of the result."""
        if y.device.type != "cuda" or self.device.type == "cuda":
            self.put(place, y)
            return
        # From a dense tile, or torch makes it so in memory that is not pinned, and waits.
        copy, copied = y.contiguous().to(self.device, non_blocking=True), torch.cuda.Event()
        copied.record(torch.cuda.current_stream(y.device))
        self.waiting.append((place, copy, copied))
        self.drain(1)

    def result(self) -> Tensor:
        """[B, C, *size], after the last tile."""
        self.drain(0)
        assert self.out is not None  # a plan is never empty
        return self.out

    def drain(self, left: int) -> None:
        """Puts copies in their places, as they finish, until so many are left."""
        while len(self.waiting) > left:
            place, copy, copied = self.waiting.popleft()
            copied.synchronize()
            self.put(place, copy)

    def put(self, place: Any, y: Tensor) -> None:
        """Into the result, which the first tile shapes."""
        if self.out is None:
            make = torch.zeros if self.add else torch.empty
            self.out = make((*y.shape[:-2], *self.size), dtype=self.dtype or y.dtype, device=self.device)
        if self.add:
            self.out[place] += y.to(self.device)
        else:
            self.out[place] = y


def move(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`x` on `device`. A GPU reads it in its own time; what goes to the CPU has arrived."""
    return x.to(device, dtype, non_blocking=device.type == "cuda")
