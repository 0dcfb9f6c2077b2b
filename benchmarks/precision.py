"""How far a UNet of Stable Diffusion's kind is from itself in fp32, by dtype, and what that makes of z0 at tau = 999.

    python -m benchmarks.precision --width 128

Random weights, white noise as latents and prompt: what rounding does depends on depth and width more than on values.
"""

import copy
from collections.abc import Mapping

import torch
import tyro
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ctsr.families import get_family
from ctsr.models import forward
from training.model.sd21 import SD21_UNET

TIMESTEP = 999


def networks(unet: nn.Module) -> Mapping[str, nn.Module]:
    """The UNet as a whole in each dtype, and its weights alone rounded, last layers apart."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    whole = {name: nn.Module.to(copy.deepcopy(unet), dtype=dtype) for name, dtype in half.items()}
    rounded = {f"{name}, weights alone": nn.Module.float(copy.deepcopy(whole[name])) for name in half}
    return {**whole, **rounded}


def relative_error(x: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference."""
    return float((x.float() - reference).square().mean().sqrt() / reference.square().mean().sqrt())


@torch.no_grad()
def main(width: int = 320, side: int = 32, device: str = "cpu") -> None:
    """Prints the errors.

    Args:
        width: channels of the first level; SD 2.1 has 320.
        side: latents on each side.
        device: where to compute.
    """
    torch.manual_seed(0)
    widths = (width, 2 * width, 4 * width, 4 * width)
    unet = UNet2DConditionModel(
        **{**SD21_UNET, "block_out_channels": widths, "attention_head_dim": tuple(w // 64 for w in widths)}
    )
    nn.Module.to(unet.eval(), device=device)
    z = torch.randn(1, 4, side, side, device=device)
    prompt = torch.randn(1, 77, SD21_UNET["cross_attention_dim"], device=device)
    reference = forward.predict(unet, z, TIMESTEP, prompt)
    gain = get_family("osediff").gain
    for name, network in networks(unet).items():
        error = relative_error(forward.predict(network, z, TIMESTEP, prompt), reference)
        print(f"{name:22s} {100 * error:6.3f} %   z0 {gain * error:.3f} rms")


if __name__ == "__main__":
    tyro.cli(main)
