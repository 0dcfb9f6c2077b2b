"""A stage's file as released weights, or held-back photographs as folders to score it on.

python -m training.export weights --model RUNS/stage2/model.safetensors --out ctsr/weights/ctsr-mini.safetensors
python -m training.export pairs --photos PHOTOS --out RUNS/held_back
"""

import logging
from pathlib import Path
from typing import Literal

import torch
import tyro
from PIL import Image
from torch import Tensor

from ctsr.color_fix import ColorFix
from training.data import mini_data
from training.one_step import open_pipeline
from training.pairs import held_back_pairs
from training.photos import load_photos

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def weights(
    model: Path, out: Path, precision: Literal["fp32", "bf16", "fp16"] = "fp16", color_fix: ColorFix = "wavelet"
) -> None:
    """Writes a stage's file again, smaller, with the colour fix that it shall use by default."""
    pipeline = open_pipeline(model)
    pipeline.register_to_config(color_fix=color_fix)
    pipeline.save_single_file(out, DTYPES[precision])


def to_image(x: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] as an 8-bit picture."""
    return Image.fromarray(((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())


def pairs(photos: Path, out: Path, size: int = 384) -> None:
    """Writes LR and HR of every held-back photograph, `camera` degraded, as PNG folders."""
    for number, pair in enumerate(held_back_pairs(load_photos(photos), mini_data().pairs, size)):
        for folder, key in (("LR", "lr"), ("HR", "soft")):
            (out / folder).mkdir(parents=True, exist_ok=True)
            to_image(pair[key]).save(out / folder / f"{number:03d}.png")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    tyro.extras.subcommand_cli_from_dict({"weights": weights, "pairs": pairs})
