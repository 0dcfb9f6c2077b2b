"""A stage's networks as the library's single file, or held-back photographs as folders to score it on.

python -m training.export weights --stage RUNS/realism --out ctsr/weights/ctsr-mini.safetensors
python -m training.export pairs --photos PHOTOS --out RUNS/held_back
"""

import logging
from pathlib import Path

import torch
import tyro
from PIL import Image
from torch import Tensor

from ctsr import CTSRPipeline, TimeAwareAutoencoderMini, TimeConditionedUNetMini
from training.one_step import TIMESTEP, Pairs, held_back_pairs
from training.photos import load_photos


def weights(stage: Path, out: Path, color_fix: str = "wavelet") -> None:
    """Writes the networks in `stage` (vae, unet) as one fp16 safetensors file."""
    vae = TimeAwareAutoencoderMini.from_pretrained(stage / "vae", low_cpu_mem_usage=False)
    unet = TimeConditionedUNetMini.from_pretrained(stage / "unet", low_cpu_mem_usage=False)
    pipeline = CTSRPipeline(
        vae, unet, family="ctsr", parameterization="residual", encoder_timesteps=[TIMESTEP], color_fix=color_fix
    )
    pipeline.save_single_file(out, torch.float16)


def to_image(x: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] as an 8-bit picture."""
    return Image.fromarray(((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def pairs(photos: Path, out: Path, size: int = 384) -> None:
    """Writes LR and HR of every held-back photograph, `camera` degraded, as PNG folders."""
    for number, pair in enumerate(held_back_pairs(load_photos(photos), Pairs(), size)):
        for folder, key in (("LR", "lr"), ("HR", "soft")):
            (out / folder).mkdir(parents=True, exist_ok=True)
            to_image(pair[key]).save(out / folder / f"{number:03d}.png")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    tyro.extras.subcommand_cli_from_dict({"weights": weights, "pairs": pairs})
