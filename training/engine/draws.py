"""Random numbers that belong to a sample: functions of the run's seed, the sample's number and a name.

A resumed run, a run on another number of processes and a run of another batch size therefore see the same noise for
the same sample.
"""

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 2**63


@dataclass(frozen=True)
class Draws:
    """Draws for the samples of a batch.

    Attributes:
        index: the samples' numbers, int64 [B].
        seed: of the run.
    """

    index: Tensor
    seed: int = 0

    def generators(self, name: str) -> list[torch.Generator]:
        """One CPU generator a sample; the same name gives the same numbers again."""
        stream = zlib.crc32(name.encode())
        mixed = [hash((self.seed, stream, int(i))) % WORD for i in self.index]  # of integers: the same in every process
        return [torch.Generator().manual_seed(number) for number in mixed]

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normal numbers, fp32, of the shape [B, ...] and on the device of `like`."""
        rows = [torch.randn(like.shape[1:], generator=generator) for generator in self.generators(name)]
        return torch.stack(rows).to(like.device)

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """U[low, high), fp32 [B], on the CPU."""
        rows = [torch.rand((), generator=generator) for generator in self.generators(name)]
        return low + (high - low) * torch.stack(rows)

    def integers(self, name: str, low: int, high: int) -> Tensor:
        """U{low..high}, both included, int64 [B], on the CPU."""
        return torch.stack([torch.randint(low, high + 1, (), generator=g) for g in self.generators(name)])
