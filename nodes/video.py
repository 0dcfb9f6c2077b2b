"""CTSRUpscaleVideo: a video in, a larger video out, frame by frame."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import InputImpl, io
from torch import Tensor

from . import host, video_frames
from .checks import split_image, whole
from .inputs import (
    color_fix_input,
    dial_input,
    model_input,
    scale_input,
    schema,
    steady_input,
    target_inputs,
    tile_input,
)
from .progress import working
from .room import check_batch
from .target import Target
from .upscale import STAGES, Upscaler

BEST, WORST = 0, 51


class CTSRUpscaleVideo(io.ComfyNode):
    """Video in, larger video out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="CTSRUpscaleVideo",
            display_name="Upscale Video (CTSR Super Resolution)",
            essentials_category="Video Tools",
            search_aliases=["video super resolution", "enlarge video", "restore video", "upscale frames"],
            description="Enlarges a video frame by frame, however long it is: a frame at a time is in memory. Sound "
            "and the times of the frames stay; still parts are kept still.",
            inputs=[
                io.Video.Input("video", tooltip="From Load Video or Create Video."),
                dial_input(default=1.0),  # what is invented anew for each frame flickers
                scale_input(2.0),
                model_input(optional=True),
                *target_inputs(),
                tile_input(came_later=True),
                color_fix_input(came_later=True),
                steady_input(0.7),
                io.Int.Input(
                    "crf",
                    default=17,
                    min=BEST,
                    max=WORST,
                    optional=True,
                    tooltip="Quality of the H.264 video: 0 loses nothing, 17 nothing that the eye sees, 23 makes small "
                    "files.",
                ),
            ],
            outputs=[io.Video.Output(display_name="video", tooltip="For Save Video, with even sides.")],
        )

    @classmethod
    def execute(
        cls,
        video: Any,
        t: float,
        scale: float,
        model: host.HostModel | None = None,
        target: str = "scale",
        width: int = 0,
        height: int = 0,
        side: int = 2048,
        megapixels: float = 4.0,
        most_megapixels: float = 0.0,
        tile: int = 0,
        color_fix: str = "wavelet",
        steady: float = 0.7,
        crf: int = 17,
    ) -> io.NodeOutput:
        model = model or host.built_in()
        goal = Target(target, model.scale(scale), width, height, side, megapixels, most_megapixels, "always")
        is_file = isinstance(video, InputImpl.VideoFromFile)
        source: Any = video.get_stream_source() if is_file else video.get_components()
        count = video_frames.count_frames(source) if is_file else len(source.images)
        size = goal.size(*(video_frames.frame_size(source) if is_file else source.images.shape[1:3]))
        check_batch(1, size)
        crf = whole("crf", crf, BEST, WORST)
        upscaler = Upscaler(model, size, t, tile, color_fix, steady)
        path = Path(folder_paths.get_temp_directory()) / f"ctsr_{secrets.token_hex(8)}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with working(max(count, 1), STAGES) as work:
            done = 0

            def enlarge(image: Tensor) -> Tensor:
                nonlocal done
                large = upscaler(split_image(image)[0], None, work, min(done, work.pictures - 1))
                done += 1
                return large

            try:
                (video_frames.enlarge_file if is_file else video_frames.enlarge_batch)(source, path, size, crf, enlarge)
            except BaseException:  # a cancel too: half a video is none
                path.unlink(missing_ok=True)
                raise
            work.result = f"{size[1]}x{size[0]} · {done} frames"
        return io.NodeOutput(InputImpl.VideoFromFile(str(path)))
