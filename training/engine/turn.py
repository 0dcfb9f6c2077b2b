"""A turn: one optimizer's part in a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Turn:
    """One optimizer's part in a step.

    Attributes:
        name: for logs and checkpoints.
        module: `module(batch)` returns a dict of tensors; `loss` is minimised, the other scalars are logged.
        peak_rate: learning rate after the warm-up.
        groups: parameter groups; `factor` multiplies the rate. None: all of the module that requires a gradient.
        betas: of AdamW.
        weight_decay: of AdamW.
    """

    name: str
    module: nn.Module
    peak_rate: float
    groups: Sequence[dict[str, Any]] | None = None
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters that the optimizer moves."""
        if self.groups is None:
            return [p for p in self.module.parameters() if p.requires_grad]
        return [p for group in self.groups for p in group["params"]]

    def optimizer(self) -> torch.optim.AdamW:
        """A new AdamW over these parameters."""
        groups = self.groups if self.groups is not None else [{"params": self.parameters}]
        return torch.optim.AdamW(
            [dict(group) for group in groups], lr=self.peak_rate, betas=self.betas, weight_decay=self.weight_decay
        )
