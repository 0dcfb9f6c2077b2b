"""What another `timestep` does in a time-aware model, and what of it the encoder's modulation is worth.

    python -m benchmarks.timesteps PAIRS [PAIRS ...] [--model FILE] [--t 1]

PAIRS are folders with LR and HR, made by `training.stages.export pairs --softness A B`. Rows: a folder, a timestep,
whether the encoder is told it or stays at the model's default ("folded") while the UNet is told; PSNR-Y in dB against
HR, and acutance: the mean gradient of luma over that of HR, 1 where as crisp.
"""

from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from ctsr import CTSRPipeline
from ctsr.assess.windows import luma
from ctsr.images.inputs import from_pil
from training.stages.stage import psnr_y

TIMESTEPS = (0, 250, 500, 750, 999)


def gradient(picture: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels' luma, [1, 3, H, W]."""
    grey = luma(picture)
    return float(grey.diff(dim=-1).abs().mean() + grey.diff(dim=-2).abs().mean())


def restored(pipeline: CTSRPipeline, lr: Tensor, hr: Tensor, t: float, timestep: int, folded: bool) -> Tensor:
    """The result, as large as `hr`, with the UNet, and unless folded the encoder, told this timestep; in [0, 1]."""
    size = (hr.shape[2], hr.shape[3])
    encoded = pipeline.encode(lr, *size, None if folded else timestep)
    ends = pipeline.endpoints(encoded.latents, timestep)
    return pipeline.decode(pipeline.blend(ends, t), size)


@torch.inference_mode()
def main(
    folders: Annotated[list[Path], typer.Argument(exists=True, file_okay=False)],
    model: Path | None = None,
    t: float = 1.0,
    pictures: int = 24,
) -> None:
    """Prints the table."""
    pipeline = CTSRPipeline.mini() if model is None else CTSRPipeline.from_single_file(model)
    print(f"t = {t:g}, default timestep {pipeline.family.encoder_timesteps[0]}")
    for folder in folders:
        pairs = [
            (from_pil(Image.open(path)), from_pil(Image.open(folder / "HR" / path.name)))
            for path in sorted((folder / "LR").iterdir())[:pictures]
        ]
        for timestep in TIMESTEPS:
            for folded in (False, True):
                results = [(restored(pipeline, lr, hr, t, timestep, folded), hr) for lr, hr in pairs]
                quality = fmean(psnr_y(2 * result - 1, 2 * hr - 1) for result, hr in results)
                acutance = fmean(gradient(result) / gradient(hr) for result, hr in results)
                row = f"{folder.name:12s} {timestep:4d} encoder {'folded' if folded else 'told':6s}"
                print(f"{row} {quality:6.2f} dB  acutance {acutance:.3f}")


if __name__ == "__main__":
    typer.run(main)
