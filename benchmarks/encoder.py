"""x264's presets over a pan of a photograph, 1920x1080: the processor's time, size and PSNR a frame.

HOST/.venv/bin/python benchmarks/encoder.py        with the Python of a ComfyUI host, which has PyAV
"""

import io
import time
from fractions import Fraction
from pathlib import Path

import av  # pyright: ignore[reportMissingImports]
import numpy as np
from PIL import Image

PHOTO = Path(__file__).resolve().parents[1] / "examples/images/mural.jpg"
PRESETS = ("medium", "faster", "veryfast", "superfast")
COUNT, QUALITY = 40, 17


def frames() -> list[np.ndarray]:
    """A camera that moves over the photograph, [1080, 1920, 3] in 0..255."""
    with Image.open(PHOTO) as image:
        wide = np.asarray(image.convert("RGB").resize((2400, 1350)))
    return [np.ascontiguousarray(wide[10 + i : 1090 + i, 20 + 3 * i : 1940 + 3 * i]) for i in range(COUNT)]


def encode(pictures: list[np.ndarray], preset: str) -> bytes:
    """The video."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as writer:
        stream = writer.add_stream("libx264", rate=Fraction(25), options={"crf": str(QUALITY), "preset": preset})
        stream.height, stream.width, stream.pix_fmt = 1080, 1920, "yuv420p"
        for picture in pictures:
            writer.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")))
        writer.mux(stream.encode())
    return out.getvalue()


def main() -> None:
    """A line a preset."""
    pictures = frames()
    for preset in PRESETS:
        start = time.process_time()
        video = encode(pictures, preset)
        took = (time.process_time() - start) / COUNT
        with av.open(io.BytesIO(video)) as reader:
            seen = [frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)]
        mse = np.mean([np.mean(np.square(a.astype(float) - b)) for a, b in zip(seen, pictures, strict=True)])
        psnr = 10 * np.log10(255**2 / mse)
        print(f"{preset}: {took:.3f} s of the processor, {len(video) / COUNT / 1024:.1f} KiB, {psnr:.2f} dB")


if __name__ == "__main__":
    main()
