"""Videos frame by frame, by the host's PyAV: neither all small frames nor all large ones are ever in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

CODEC, PIXELS = "libx264", "yuv420p"
PRESET = "veryfast"
"""x264's: less time than the default for nearly its picture and size, by `benchmarks/encoder.py`."""
SOUNDS = {"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"}
"""Codecs that an .mp4 holds."""
KEEP_METADATA = {"movflags": "use_metadata_tags"}

Enlarge = Callable[[Tensor], Tensor]


def count_frames(source: Any) -> int:
    """Frames of a video file as far as it tells, 0 if it does not."""
    with av.open(source) as container:
        stream = first_video(container)
        if stream.frames:
            return int(stream.frames)
        if container.duration and stream.average_rate:
            return round(container.duration / av.time_base * stream.average_rate)
    return 0


def first_video(container: Any) -> Any:
    """The stream of pictures; raises ValueError where there is none."""
    if not container.streams.video:
        raise ValueError("video holds no pictures: load a file with a video stream.")
    return container.streams.video[0]


def frame_size(source: Any) -> tuple[int, int]:
    """Height and width of the first frame as it is shown, upright.

    Raises:
        ValueError: there is none.
    """
    with av.open(source) as container:
        frame = next(container.decode(first_video(container)), None)
        if frame is None:
            raise ValueError("video holds no frame: load one that plays.")
        height, width = upright(frame).shape[:2]
    return height, width


def upright(frame: Any) -> np.ndarray:
    """A decoded frame as [h, w, 3] in 0..255, turned as phones note it beside the pictures."""
    return np.rot90(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0) // 90)


def enlarge_file(source: Any, target: Path, size: tuple[int, int], quality: int, enlarge: Enlarge) -> None:
    """Writes a video whose frames are `enlarge` of those of `source`, at the same times, with the same sound.

    Args:
        source: path, or file object, of a video.
        target: an .mp4 that is written.
        size: height and width of the large frames, both even.
        quality: x264's constant rate factor.
        enlarge: from [1, h, w, 3] to [1, H, W, 3] in [0, 1].
    """
    with av.open(source) as reader, av.open(str(target), "w", options=KEEP_METADATA) as writer:
        pictures = first_video(reader)
        writer.metadata.update(reader.metadata)
        stream = new_stream(writer, pictures.average_rate or Fraction(25), size, quality)
        stream.codec_context.time_base = pictures.time_base
        copy_colours(pictures.codec_context, stream.codec_context)
        sounds = {sound: same_sound(writer, sound) for sound in reader.streams.audio}
        for packet in reader.demux(pictures, *sounds):
            if packet.stream is not pictures:
                copy_sound(writer, packet, sounds[packet.stream])
                continue
            for frame in packet.decode():
                large = enlarge(torch.from_numpy(upright(frame).copy())[None] / 255)
                write(writer, stream, large, frame.pts, pictures.time_base)
        encoders = [new for old, new in sounds.items() if old.codec.name not in SOUNDS]
        for encoder in (stream, *encoders):
            writer.mux(encoder.encode())


def enlarge_batch(components: Any, target: Path, size: tuple[int, int], quality: int, enlarge: Enlarge) -> None:
    """As `enlarge_file`, of frames and sound that are in memory: the host's VideoComponents."""
    rate = Fraction(components.frame_rate).limit_denominator(1001)
    with av.open(str(target), "w") as writer:
        stream = new_stream(writer, rate, size, quality)
        audio: dict[str, Any] = components.audio or {}
        sound = writer.add_stream("aac", rate=int(audio["sample_rate"])) if audio else None
        for number, frame in enumerate(components.images.split(1)):
            write(writer, stream, enlarge(frame), number, 1 / rate)
        writer.mux(stream.encode())
        if sound is not None:
            writer.mux(sound.encode(sound_of(audio, len(components.images) / rate)))
            writer.mux(sound.encode())


def new_stream(writer: Any, rate: Fraction, size: tuple[int, int], quality: int) -> Any:
    """A stream of pictures."""
    stream = writer.add_stream(CODEC, rate=rate, options={"crf": str(quality), "preset": PRESET})
    stream.height, stream.width = size
    stream.pix_fmt = PIXELS
    return stream


def same_sound(writer: Any, sound: Any) -> Any:
    """A stream for the packets of `sound`, or an encoder where an .mp4 cannot hold them."""
    if sound.codec.name in SOUNDS:
        return writer.add_stream_from_template(sound, opaque=True)
    return writer.add_stream("aac", rate=sound.rate, layout=sound.layout)


def copy_sound(writer: Any, packet: Any, target: Any) -> None:
    """A packet of sound as it is, or encoded anew for an encoder."""
    if packet.stream.codec.name not in SOUNDS:
        for frame in packet.decode():
            writer.mux(target.encode(frame))
    elif packet.dts is not None:
        packet.stream = target
        writer.mux(packet)


def copy_colours(source: Any, target: Any) -> None:
    """What numbers mean as colours: frames are read and written by the same matrix, so they keep their meaning."""
    for name in ("color_primaries", "color_trc", "colorspace", "color_range"):
        setattr(target, name, getattr(source, name))


def write(writer: Any, stream: Any, image: Tensor, pts: int | None, time_base: Fraction) -> None:
    """Encodes one IMAGE [1, H, W, 3]."""
    pixels = (image[0, ..., :3].float() * 255).round_().clamp_(0, 255).byte().cpu().numpy()
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=PIXELS)
    frame.pts, frame.time_base = pts, time_base
    writer.mux(stream.encode(frame))


def sound_of(audio: dict[str, Any], seconds: Fraction) -> Any:
    """The host's AUDIO, its first two channels, cut to the pictures' length."""
    rate = int(audio["sample_rate"])
    wave = audio["waveform"][0, :2, : int(seconds * rate)].float().cpu().numpy()
    layout = "mono" if len(wave) == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    return frame
