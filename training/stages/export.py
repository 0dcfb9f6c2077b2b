"""A stage's file as released weights; held-back photographs as folders to score it on; a model's pictures to learn of.

python -m training.stages.export weights --model RUNS/joint/model.safetensors --extend=-0.3 --out my-ctsr.safetensors
python -m training.stages.export pairs --photos PHOTOS --out RUNS/held_back
python -m training.stages.export pairs --photos PHOTOS --out RUNS/soft --softness 1 2
python -m training.stages.export taught --photos PHOTOS --model OTHER.safetensors --out RUNS/taught
"""

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from torch import Tensor, nn

from ctsr import CTSRPipeline, TimeAwareAutoencoderMini2, TimeConditionedUNetMini, TimeConditionedUNetMini2
from ctsr.convert.convert import about_of
from ctsr.images.color_fix import ColorFix
from ctsr.images.inputs import from_pil
from ctsr.images.tensors import as_pil, output_size
from ctsr.models.autoencoder_mini2 import FACTOR, LATENT_CHANNELS
from training.data.datasets import check_held_back, mini_data
from training.data.degradation import degrade
from training.data.pairs import Pairs, bicubic, held_back_pairs, to_tensor
from training.data.photos import load_photos, photo_paths, random_crop
from training.losses.perceptual import VGGDistance
from training.model.one_step import open_pipeline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def extend_(unet: TimeConditionedUNetMini | TimeConditionedUNetMini2, share: float) -> None:
    """Moves t = 0 by `share` of the way between the ends, in place; t = 1 and the curve stay where they are.

    More than zero moves it away from t = 1, -1 < share < 0 towards it.

    With t_old = -share + (1 + share) t, z(t_old) is again z0 + t delta + t (1 - t) kappa, and the new groups are linear
    in the old ones. For residual prediction, z0 = z_L - o. A ctsr-mini 2 has no kappa.
    """
    for parameter in (unet.conv_out.weight, cast(Tensor, unet.conv_out.bias)):
        o, delta, *kappas = (group.clone() for group in parameter.split(unet.config["in_channels"]))
        bend = sum((share * (1 + share) * kappa for kappa in kappas), torch.zeros_like(o))
        bends = [(1 + share) ** 2 * kappa for kappa in kappas]
        parameter.copy_(torch.cat([o + share * delta + bend, (1 + share) * delta + bend, *bends]))


MOST_PATTERN = 0.25  # of a scaled latent; a mean over all values would follow the strongest edges


@torch.no_grad()
def level_(pipeline: CTSRPipeline, pictures: Sequence[Tensor]) -> None:
    """Takes away, in place, what lies at the same place of every 4x4 cell of every result at either end.

    Of a ctsr-mini 2, whose latents are a cosine transform: the mean of a latent other than a cell's own mean is a fixed
    pattern, and the biases of the last convolution can cancel it. Values are clamped to `MOST_PATTERN` before.

    Args:
        pipeline: of family ctsr, residual.
        pictures: low-resolution ones, [1, 3, h, w] in [0, 1], the more and the more different the better.
    """
    sums = torch.zeros(2, LATENT_CHANNELS)
    for picture in pictures:
        size = output_size(picture, pipeline.config["default_scale"], None, None)
        ends = pipeline.endpoints(pipeline.encode(picture, *size).latents)
        for row, t in zip(sums, (0.0, 1.0), strict=True):
            row += pipeline.blend(ends, t).clamp(-MOST_PATTERN, MOST_PATTERN).mean((0, 2, 3))
    realistic, faithful = sums / len(pictures)
    realistic[:: FACTOR**2] = faithful[:: FACTOR**2] = 0  # the cells' means, which are colours
    bias = cast(Tensor, cast(nn.Conv2d, pipeline.unet.conv_out).bias)
    bias[: 2 * LATENT_CHANNELS] += torch.cat([realistic, realistic - faithful])  # z0 = z_L - o, z1 = z0 + delta


def weights(
    model: Path,
    out: Path,
    precision: Literal["fp32", "bf16", "fp16"] = "fp16",
    color_fix: ColorFix = "wavelet",
    extend: float = 0.0,
    timestep: int | None = None,
    level: Path | None = None,
    stages: tuple[str, ...] = (),
) -> None:
    """Writes a stage's file again, smaller.

    Args:
        model: a stage's file.
        out: the file to write.
        precision: of its tensors.
        color_fix: what it shall use by default.
        extend: how far beyond the stage's own realistic end t = 0 shall lie, of the way between its ends, above -1;
            less than zero for short of it. Of the mini.
        level: folder of low-resolution pictures, by which the pattern that lies on every result is measured and taken
            away (`level_`). Of ctsr-mini 2.
        stages: that made it, in order; `ctsr info` shows them.
        timestep: that it shall use by default, of the encoder and of a UNet that is told the same; 0 to 999.

    Raises:
        ValueError: nothing of the dial would be left, the model is no ctsr-mini and has none to extend, no ctsr-mini 2
            and has nothing to level, or there is no such timestep.
    """
    if timestep is not None and not 0 <= timestep <= 999:
        raise ValueError(f"timestep is {timestep}: give one from 0 to 999.")
    if not -1 < extend < math.inf:
        raise ValueError(f"extend is {extend}: give more than -1, of which nothing of the dial is left.")
    pipeline = open_pipeline(model)
    pipeline.register_to_config(color_fix=color_fix)
    if timestep is not None:
        pipeline.register_to_config(encoder_timesteps=[timestep] * len(pipeline.family.encoder_timesteps))
    if stages:
        pipeline.register_to_config(about={**about_of(pipeline), "stages": ", ".join(stages)})
    if extend:
        if pipeline.family.name != "ctsr" or pipeline.family.parameterization != "residual":
            raise ValueError(f"{model} is not a ctsr-mini: leave --extend at 0.")
        extend_(cast("TimeConditionedUNetMini | TimeConditionedUNetMini2", pipeline.unet), extend)
    if level is not None:
        if not isinstance(pipeline.vae, TimeAwareAutoencoderMini2):
            raise ValueError(f"{model} is no ctsr-mini 2: leave --level out.")
        level_(pipeline, read_pictures(level))
    pipeline.save_single_file(out, DTYPES[precision])


def read_pictures(folder: Path) -> list[Tensor]:
    """The pictures of a folder, [1, 3, h, w] fp32 in [0, 1] each; raises FileNotFoundError where there are none."""
    pictures = [from_pil(Image.open(path)) for path in photo_paths(folder).values()]
    if not pictures:
        raise FileNotFoundError(f"no picture under {folder}: give a folder of low-resolution pictures.")
    return pictures


def to_image(x: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] as an 8-bit picture."""
    return Image.fromarray(((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy())


def pairs(photos: Path, out: Path, size: int = 384, softness: tuple[float, float] = (0.0, Pairs.softness)) -> None:
    """Writes LR and HR of every held-back photograph, `camera` degraded, as PNG folders.

    Args:
        photos: folder of photographs.
        out: where LR and HR shall lie.
        size: side of HR in px.
        softness: least and largest sigma in px of the blur on HR. Full-size pictures of a camera are softer than the
            photographs that one finds on the web: a model may gain on those and lose on these.

    Raises:
        ValueError: no photograph is held back, the size is under 16, or the softness is none from least to largest.
    """
    least, largest = softness
    settings = replace(mini_data().pairs, softness=largest)
    samples = held_back_pairs(load_photos(photos, training=False), settings, size, least)
    check_held_back(len(samples), photos)
    for number, pair in enumerate(samples):
        for folder, key in (("LR", "lr"), ("HR", "soft")):
            (out / folder).mkdir(parents=True, exist_ok=True)
            to_image(pair[key]).save(out / folder / f"{number:03d}.png")


def taught(photos: Path, model: Path, out: Path, count: int = 900, size: int = 384, seed: int = 5) -> None:
    """Writes LR, HR and what a model makes of LR at both ends, `t0` and `t1`: teachers' pictures for `joint`.

    Of crops of training photographs, 58 % by the camera model, 30 % by Real-ESRGAN's chain, 12 % by plain bicubic.

    Args:
        photos: folder of photographs.
        model: a file of ctsr.
        out: where the four folders shall lie.
        count: of pictures.
        size: side of HR in px, a multiple of 16; smaller photographs are left out.
        seed: of crops and degradation.
    """
    pipeline, known = open_pipeline(model), list(load_photos(photos, size).train.values())
    for folder in ("LR", "HR", "t0", "t1"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        hr = random_crop(known[rng.integers(len(known))], size, rng)
        kind = rng.random()
        lr = bicubic(hr) if kind < 0.12 else degrade(hr, "realesrgan" if kind < 0.42 else "camera", rng)
        ends = pipeline.sweep((to_tensor(lr)[None] + 1) / 2, (size, size), [0.0, 1.0])
        pictures = {"LR": Image.fromarray(lr), "HR": Image.fromarray(hr)}
        pictures |= {name: as_pil(end.clamp(0, 1)) for name, end in zip(("t0", "t1"), ends, strict=True)}
        for folder, picture in pictures.items():
            picture.save(out / folder / f"{number:05d}.png")


@torch.no_grad()
def shorten_(pipeline: CTSRPipeline, pictures: Sequence[Tensor], blocks: int) -> None:
    """Takes blocks out of the UNet of a ctsr-mini 2, in place: again and again the one that changes its outputs least.

    Args:
        pipeline: the model.
        pictures: low-resolution ones, [1, 3, h, w] in [0, 1], by which that is judged.
        blocks: that shall stay.
    """
    unet = cast(TimeConditionedUNetMini2, pipeline.unet)
    sizes = [output_size(picture, pipeline.config["default_scale"], None, None) for picture in pictures]
    inputs = [pipeline.encode(picture, *size).latents[0] for picture, size in zip(pictures, sizes, strict=True)]
    timestep = pipeline.family.timesteps[0]
    aims = [unet(z, timestep).sample for z in inputs]

    def error_without(block: nn.Module) -> float:
        unet.blocks = nn.ModuleList(other for other in kept if other is not block)
        return sum(float(F.mse_loss(unet(z, timestep).sample, aim)) for z, aim in zip(inputs, aims, strict=True))

    kept = list(unet.blocks)
    while len(kept) > blocks:
        least = min(kept, key=error_without)
        kept = [block for block in kept if block is not least]
    unet.blocks = nn.ModuleList(kept)
    unet.register_to_config(layers_per_block=blocks)


def shortened(model: Path, lr: Path, blocks: int, out: Path) -> None:
    """Writes a ctsr-mini 2 with fewer blocks in its UNet, for `joint` to start from.

    Args:
        model: a stage's file.
        lr: folder of low-resolution pictures, by which the blocks are chosen.
        blocks: that shall stay.
        out: file to write, .safetensors.

    Raises:
        ValueError: another kind of model, or it has no more blocks than that.
    """
    pipeline = open_pipeline(model)
    unet = pipeline.unet
    if not isinstance(unet, TimeConditionedUNetMini2) or not 0 < blocks < len(unet.blocks):
        raise ValueError(f"{model} is no ctsr-mini 2 of more than {blocks} blocks.")
    shorten_(pipeline, read_pictures(lr), blocks)
    pipeline.save_single_file(out)


def nearest(hr: Path, pictures: tuple[Path, ...], weights: Path, out: Path, side: int = 192) -> None:
    """Copies, of what several restorers made of the same pictures, the one that is nearest to the ground truth.

    By the mean of LPIPS and DISTS on VGG16, bf16; of each picture apart. They are then a teacher for `joint`.

    Args:
        hr: folder of ground truths.
        pictures: a folder of each restorer's pictures, of the same names.
        weights: folder of VGG16's, see `training.losses.perceptual.VGGDistance`.
        out: where the copies shall lie.
        side: of the square in the middle that is compared, in px; less where a picture is smaller.

    Raises:
        FileNotFoundError: no ground truth, a restorer's picture of one is missing, or weights are.
    """
    truths = photo_paths(hr)
    missing = [str(folder / name) for name in truths for folder in pictures if not (folder / name).is_file()]
    if missing or not truths:
        raise FileNotFoundError(f"{missing[0]} is missing." if missing else f"no picture under {hr}.")
    distance = VGGDistance(weights)
    out.mkdir(parents=True, exist_ok=True)
    taken = dict.fromkeys(pictures, 0)

    def middle(path: Path) -> Tensor:
        picture = 2 * from_pil(Image.open(path)) - 1
        top, left = (max(0, (length - side) // 2) for length in picture.shape[2:])
        return picture[..., top : top + side, left : left + side].contiguous()

    @torch.no_grad()
    def to_truth(path: Path, truth: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float(distance(middle(path), truth))

    for name, path in truths.items():
        truth = middle(path)
        best = min(pictures, key=lambda folder: to_truth(folder / name, truth))
        taken[best] += 1
        shutil.copy2(best / name, out / name)
    print(", ".join(f"{folder}: {count}" for folder, count in taken.items()))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    tyro.extras.subcommand_cli_from_dict(
        {"weights": weights, "pairs": pairs, "taught": taught, "shortened": shortened, "nearest": nearest}
    )
