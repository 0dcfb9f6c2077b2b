"""Opens a checkpoint by its name: the built-in model, a single file, or a folder."""

from pathlib import Path

import torch

from .checkpoints.hub import DTypeOption
from .pipeline import CTSRPipeline

BUILT_IN = "mini"
CPU = torch.device("cpu")


def load_pipeline(model: str | Path, torch_dtype: DTypeOption = None, device: torch.device = CPU) -> CTSRPipeline:
    """The pipeline of "mini", of one of our single files, or of a folder that `save_pretrained` wrote.

    Args:
        model: the name or path.
        torch_dtype: fp32 by default; "auto" is bf16 where the device has it in hardware. See `from_pretrained`.
        device: where it will run.

    Raises:
        CheckpointError: nothing loadable there; the message says what to do.
    """
    if str(model) == BUILT_IN:
        return CTSRPipeline.mini(torch_dtype, device)
    if Path(model).is_dir():
        return CTSRPipeline.from_pretrained(model, torch_dtype=torch_dtype, device_map=device)
    return CTSRPipeline.from_single_file(model, torch_dtype, device)
