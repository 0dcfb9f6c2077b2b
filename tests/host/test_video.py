"""Frames and videos: even sides, sound and times kept, still places still, a frame at a time in memory."""

import json
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.comfyui import ComfyServer
from tests.host.graphs import MINI, TINY, Prompt, node, one, put, refusal, saved, succeed

VIDEO = Path(__file__).parents[1] / "browser" / "video.py"


def run_video(server: ComfyServer, command: str, path: Path, *numbers: int) -> str:
    """What tests/browser/video.py prints, run in the host's environment, which has PyAV."""
    command_line = [str(server.host.python), str(VIDEO), command, str(path), *map(str, numbers)]
    return subprocess.run(command_line, capture_output=True, text=True, check=True, timeout=60).stdout


def upscale_video(file: str, checkpoint: str = TINY, **inputs: object) -> Prompt:
    """From a video file to a video file."""
    return {
        "load": node("LoadCTSR", checkpoint=checkpoint, precision="fp32", attention="auto"),
        "video": node("LoadVideo", file=file),
        "upscale": node("CTSRUpscaleVideo", video=["video", 0], model=["load", 0], t=1.0, **{"scale": 2.0, **inputs}),
        "save": node("SaveVideo", video=["upscale", 0], filename_prefix="video", format="auto", codec="auto"),
    }


def saved_video(server: ComfyServer, prompt: Prompt) -> dict[str, float]:
    """What the video that a prompt saved holds."""
    (file,) = succeed(server, prompt).outputs["save"]["images"]
    return json.loads(run_video(server, "read", server.output(file)))


# --- even sides ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "even", "size"),
    [(1, "batches", (87, 111)), (2, "batches", (88, 112)), (1, "always", (88, 112)), (2, "never", (87, 111))],
)
@pytest.mark.parametrize("kind", ["CTSRUpscale", "TimeAwareEncode"])
def test_sides_of_several_frames_are_even(server, kind, frames, even, size):
    prompt = one(scale=3.0)
    prompt["picture"] = put(server, np.full((frames, 29, 37, 3), 0.5, np.float32))
    prompt["upscale"]["inputs"]["even_sides"] = even
    source = "upscale"
    if kind == "TimeAwareEncode":
        inputs = {"model": ["load", 0], "image": ["picture", 0], "scale": 3.0, "width": 0, "height": 0, "seed": 0}
        prompt["encode"] = node(kind, **inputs, timestep=-1, tile=0, even_sides=even)
        prompt["decode"] = node("TiledVAEDecode", vae=["load", 1], latent=["encode", 0], tile=0, color_fix="none")
        source = "decode"
    assert saved(server, prompt, [source, 0])[0].shape == (frames, *size, 3)


# --- still places --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static_clip() -> np.ndarray:
    """A still scene seen by a noisy camera, [8, 24, 32, 3]."""
    scene = np.kron(np.array([[0.2, 0.7], [0.6, 0.3]], np.float32), np.ones((12, 16), np.float32))
    noise = np.random.default_rng(3).normal(0, 0.03, (8, 24, 32, 3)).astype(np.float32)
    return np.clip(scene[None, :, :, None] + noise, 0, 1)


def steadied(server: ComfyServer, clip: np.ndarray, steady: float) -> np.ndarray:
    """The clip, enlarged at the realistic end."""
    prompt = one(checkpoint=MINI, t=0.0)
    prompt["picture"] = put(server, clip)
    prompt["upscale"]["inputs"]["steady"] = steady
    return saved(server, prompt, ["upscale", 0])[0]


def test_a_still_scene_does_not_boil(server, static_clip):
    boiling, steady = (steadied(server, static_clip, amount)[3:].std(axis=0).mean() for amount in (0.0, 0.8))
    print(f"std over time: {boiling:.4f} -> {steady:.4f}")
    assert steady < 0.5 * boiling


def test_what_moves_is_not_smeared(server):
    clip = np.full((6, 24, 32, 3), 0.2, np.float32)
    for i, frame in enumerate(clip):
        frame[6:14, 4 * i : 4 * i + 8] = 0.9
    plain, steady = (steadied(server, clip, amount) for amount in (0.0, 0.8))
    assert np.abs(plain - steady).mean() < 0.01


# --- video in, video out -------------------------------------------------------------------------------------------


def test_a_video_keeps_sound_speed_and_number_of_frames(server):
    path = server.base / "input" / "clip.mp4"
    run_video(server, "write", path, 50, 38)
    before, after = (
        json.loads(run_video(server, "read", path)),
        saved_video(server, upscale_video("clip.mp4", scale=1.5)),
    )
    assert (after["width"], after["height"]) == (76, 58)  # 75x57 made even
    assert (after["frames"], after["fps"]) == (before["frames"], before["fps"])
    assert after["seconds"] == pytest.approx(before["seconds"], abs=0.2)


def test_frames_in_memory_become_a_video(server):
    prompt = upscale_video("")
    prompt["frames"] = put(server, np.full((3, 19, 25, 3), 0.5, np.float32))
    prompt["video"] = node("CreateVideo", images=["frames", 0], fps=12.0)
    found = saved_video(server, prompt)
    assert (found["frames"], found["fps"], found["width"], found["height"]) == (3, 12, 50, 38)


def test_colours_of_a_video_stay(server):
    prompt = upscale_video("", MINI)
    colour = np.array([0.8, 0.3, 0.5], np.float32)
    prompt["frames"] = put(server, np.broadcast_to(colour, (4, 32, 32, 3)).copy())
    prompt["video"] = node("CreateVideo", images=["frames", 0], fps=8.0)
    prompt["back"] = node("GetVideoComponents", video=["upscale", 0])
    (frames,) = saved(server, prompt, ["back", 0])
    np.testing.assert_allclose(frames.mean(axis=(0, 1, 2)), colour, atol=0.02)


@pytest.mark.parametrize("value", [-1, 52, 1.5])
def test_a_quality_out_of_range_is_explained(server, value):
    run_video(server, "write", server.base / "input" / "clip.mp4", 50, 38)
    prompt = upscale_video("clip.mp4")
    prompt["value"] = node("ProbeValue", text=json.dumps(value))
    prompt["upscale"]["inputs"]["crf"] = ["value", 0]
    assert "give a whole number from 0 to 51" in refusal(server, prompt)


def test_a_long_video_takes_no_more_memory_than_a_short_one(server):
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    rises = []
    for frames in (12, 12, 96):  # the first to have everything loaded
        path = server.base / "input" / f"long-{frames}.mp4"
        run_video(server, "write", path, 96, 64, frames)
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")
        before = process.memory_info().rss
        assert saved_video(server, upscale_video(path.name, scale=4.0))["frames"] == frames
        rises.append(process.memory_info().rss - before)
    assert rises[2] < 84 * 384 * 256 * 3 * 4 / 4, "a quarter of what the further frames are"
