"""Opens a checkpoint by its name: a built-in model, a single file, or a folder."""

from pathlib import Path

import torch

from .checkpoints import own
from .checkpoints.hub import DTypeOption
from .pipeline import CTSRPipeline

BUILT_IN, LOWLIGHT = "mini", "lowlight"
BUILT_INS = {BUILT_IN: own.MINI_WEIGHTS, LOWLIGHT: own.LOWLIGHT_WEIGHTS}
"""Models that come with the library, and their weights."""
CPU = torch.device("cpu")


def is_built_in(model: str | Path) -> bool:
    """Whether it is the name of a model that comes with the library."""
    return str(model) in BUILT_INS


def path_of(model: str | Path) -> Path:
    """The weights of a built-in model by its name, else the file or folder itself."""
    return BUILT_INS.get(str(model), Path(model))


def load_pipeline(model: str | Path, torch_dtype: DTypeOption = None, device: torch.device = CPU) -> CTSRPipeline:
    """The pipeline of a built-in model, of one of our single files, or of a folder that `save_pretrained` wrote.

    Args:
        model: "mini", "lowlight", or a path.
        torch_dtype: fp32 by default; "auto" is bf16 where the device has it in hardware. See `from_pretrained`.
        device: where it will run.

    Raises:
        CheckpointError: nothing loadable there; the message says what to do.
    """
    model = path_of(model)
    if model.is_dir():
        return CTSRPipeline.from_pretrained(model, torch_dtype=torch_dtype, device_map=device)
    return CTSRPipeline.from_single_file(model, torch_dtype, device)
