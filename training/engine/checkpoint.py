"""Checkpoints of a run: one file, replaced as a whole."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from ctsr.addresses import file_system
from training.engine.processes import from_first
from training.engine.turn import Turn

logger = logging.getLogger(__name__)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """Trained parameters and buffers of a module: what a checkpoint keeps of it, without the frozen base."""
    named = module.named_parameters(remove_duplicate=False)  # a frozen module may be reached by two names
    frozen = {name for name, parameter in named if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def back_up(checkpoint: Path, folder: str) -> None:
    """Copies the checkpoint into a folder of any file system that fsspec knows, as a whole; warns where it cannot."""
    try:
        files, place = file_system(folder)
        files.makedirs(place, exist_ok=True)
        target = f"{place}/{checkpoint.name}"
        files.put(str(checkpoint), f"{target}.partial")
        files.mv(f"{target}.partial", target)
    except Exception as error:  # whatever a store's own library raises: training shall not end for it
        logger.warning("the checkpoint was not copied to %s (%s); the next one is tried again", folder, error)


def fetch_backup(checkpoint: Path, folder: str) -> None:
    """Fetches the copy that `back_up` made, where there is one and the machine has no checkpoint of its own.

    Raises what the store's library raises: a run that cannot see its backup must not begin anew above it.
    """
    files, place = file_system(folder)
    if checkpoint.exists() or not files.exists(f"{place}/{checkpoint.name}"):
        return
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    files.get(f"{place}/{checkpoint.name}", str(partial))
    os.replace(partial, checkpoint)
    logger.info("fetched the checkpoint from %s", folder)


class State:
    """Everything that a checkpoint holds beside the step: turns, optimizers, average, place in the data.

    Not accelerate's `save_state`, which writes the frozen base too, and file by file: a killed run would leave half.
    """

    def __init__(self, turns: Sequence[Turn], optimizers: Sequence[Any], ema: EMAModel):
        self.turns, self.optimizers, self.ema = turns, optimizers, ema
        self.latest_shards: dict[int, int] = {}

    def save(self, path: Path, step: int) -> None:
        """Writes a file beside `path`, then renames it: a killed run leaves the last whole checkpoint."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {
            "step": step,
            "latest_shards": self.latest_shards,
            "ema": self.ema.state_dict(),
            "modules": {turn.name: trained_state(turn.module) for turn in self.turns},
            "optimizers": {t.name: o.state_dict() for t, o in zip(self.turns, self.optimizers, strict=True)},
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> int:
        """Restores what `save` wrote; returns the step to go on from, 0 where there is no checkpoint.

        The first process reads the file and sends it to the others, which need not see its disk.
        """
        first = PartialState().is_main_process and path.exists()
        state = from_first(torch.load(path, map_location="cpu", weights_only=True) if first else None)
        if state is None:
            return 0
        for turn, optimizer in zip(self.turns, self.optimizers, strict=True):
            saved = state["modules"].get(turn.name, {})
            if saved.keys() != trained_state(turn.module).keys():
                raise ValueError(f"{path} is of another recipe: delete it, or give another --run.out.")
            turn.module.load_state_dict(saved, strict=False)
            optimizer.load_state_dict(state["optimizers"][turn.name])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.turns[0].parameters[0].device)
        self.latest_shards = state["latest_shards"]
        logger.info("going on from step %d", state["step"])
        return state["step"]
