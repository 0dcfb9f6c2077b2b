"""Enlarges a photograph four times and turns the dial: python examples/upscale_diffusers.py photo.jpg

Writes photo_t0.0.png (most realistic) to photo_t1.0.png (most faithful). The encoder and the UNet run once: every other
place of the dial costs a decode only.
"""

from pathlib import Path

import typer
from PIL import Image

from ctsr import CTSRPipeline
from ctsr.images.inputs import from_pil
from ctsr.images.tensors import as_pil


def main(photo: Path, model: str = "mini", out: Path = Path(), device: str = "cpu") -> None:
    """MODEL is "mini", which is built in, or a folder or name on the hub for `from_pretrained`; OUT is a folder."""
    if model == "mini":
        pipe = CTSRPipeline.mini("auto", device)
    else:
        pipe = CTSRPipeline.from_pretrained(model, torch_dtype="auto", device_map=device)
    pipe.set_attention_backend("auto")

    x = from_pil(Image.open(photo))  # [1, 3, h, w] in [0, 1]
    encoded = pipe.encode(x, 4 * x.shape[2], 4 * x.shape[3])
    ends = pipe.endpoints(encoded.latents)

    out.mkdir(parents=True, exist_ok=True)
    for t in (0.0, 0.5, 1.0):
        picture = pipe.decode(pipe.blend(ends, t), encoded.size, encoded.reference, "wavelet")
        path = out / f"{photo.stem}_t{t}.png"
        as_pil(picture).save(path)
        print(path)


if __name__ == "__main__":
    typer.run(main)
