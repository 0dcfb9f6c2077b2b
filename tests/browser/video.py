"""A video with sound, run by the host's Python, which has PyAV.

python video.py write PATH WIDTH HEIGHT [FRAMES]         four or so frames at 8 a second, and a tone of their length
python video.py pan PATH WIDTH HEIGHT FRAMES PICTURE     a camera that moves over a picture, 25 frames a second
python video.py read PATH                                prints what a video holds, as JSON
"""

import json
import sys
from fractions import Fraction

import av  # pyright: ignore[reportMissingImports]
import numpy as np

FRAMES, FPS, RATE = 4, 8, 8000


def write(path: str, width: int, height: int, frames: int = FRAMES) -> None:
    """Grey frames that become lighter, and a tone."""
    with av.open(path, "w") as container:
        pictures = container.add_stream("h264", rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = width, height, "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        for i in range(frames):
            pixels = np.full((height, width, 3), 30 * i % 256, np.uint8)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(pictures.encode())
        tone = np.sin(np.arange(RATE * frames // FPS) / 4, dtype=np.float32)[None]
        samples = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        samples.rate, samples.time_base = RATE, Fraction(1, RATE)
        container.mux(sound.encode(samples))
        container.mux(sound.encode())


def pan(path: str, width: int, height: int, frames: int, picture: str) -> None:
    """Frames of a camera that moves over a picture, enlarged to a tenth more than they show."""
    from PIL import Image

    with av.open(path, "w") as container, Image.open(picture) as image:
        large = np.asarray(image.convert("RGB").resize((width * 11 // 10, height * 11 // 10), Image.Resampling.LANCZOS))
        stream = container.add_stream("h264", rate=25, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            x, y = (round((side // 10) * (1 + np.sin(i / speed)) / 2) for side, speed in ((width, 29), (height, 17)))
            pixels = np.ascontiguousarray(large[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def read(path: str) -> dict[str, float]:
    """Frames, frames a second, size and seconds of sound."""
    with av.open(path) as container:
        pictures = container.streams.video[0]
        rate, size = float(pictures.average_rate), (pictures.width, pictures.height)
        frames = sum(1 for _ in container.decode(pictures))
    with av.open(path) as container:
        sound = container.decode(audio=0) if container.streams.audio else ()
        seconds = sum(frame.samples / frame.sample_rate for frame in sound)
    return {"frames": frames, "fps": rate, "width": size[0], "height": size[1], "seconds": seconds}


if __name__ == "__main__":
    command, path, *values = sys.argv[1:]
    if command == "write":
        write(path, *map(int, values))
    elif command == "pan":
        pan(path, *map(int, values[:3]), values[3])
    else:
        print(json.dumps(read(path)))
