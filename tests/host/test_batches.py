"""Batches of pictures and frames: planned for as a whole, done one by one, each result kept once."""

import math
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.comfyui import ComfyServer
from tests.host.graphs import Prompt, five, fresh, node, one, peak, put, refusal, saved

FRAMES, HEIGHT, WIDTH = 24, 96, 128
FRAME = 4 * HEIGHT * 4 * WIDTH * 3 * 4
"""Bytes of a picture enlarged by 4."""


def frames(count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Pictures of one colour, each lighter than the one before."""
    light = np.linspace(0.2, 0.8, count, dtype=np.float32)
    return np.broadcast_to(light[:, None, None, None], (count, height, width, 3))


def of_frames(server: ComfyServer, prompt: Prompt, source: str, array: np.ndarray) -> Prompt:
    """The same graph for a batch, whose result goes nowhere."""
    end = node("ProbeSize", value=[source, 0])
    return {**prompt, "picture": put(server, np.ascontiguousarray(array)), "save": end}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's highest memory")
@pytest.mark.parametrize(("graph", "source"), [(one, "upscale"), (five, "decode")])
def test_a_further_picture_of_a_batch_takes_little_more_than_its_result(server, graph, source):
    few, many = (peak(server, of_frames(server, graph(), source, frames(count))) for count in (FRAMES // 4, FRAMES))
    assert many - few < 1.5 * (FRAMES - FRAMES // 4) * FRAME


@pytest.mark.parametrize(("graph", "source"), [(one, "upscale"), (five, "decode")])
def test_a_batch_that_cannot_fit_is_refused_before_the_first_picture(server, graph, source):
    count = math.ceil(psutil.virtual_memory().total / (16 * 2048**2))
    message = refusal(server, of_frames(server, graph(scale=16.0), source, frames(count, 128, 128)))
    assert message.startswith(f"{count} results of 2048x2048 would take")
    assert "at a time, or a smaller size" in message


def test_frames_of_a_batch_are_those_of_single_pictures(server):
    noise = np.random.default_rng(5).random((3, 17, 22, 3), dtype=np.float32)
    prompt = fresh(five())
    prompt["picture"] = put(server, noise)
    (batch,) = saved(server, prompt, ["decode", 0])
    for i, frame in enumerate(noise):
        prompt["picture"] = put(server, frame[None])
        np.testing.assert_array_equal(saved(server, prompt, ["decode", 0])[0][0], batch[i])
