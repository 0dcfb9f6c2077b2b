"""One real host for all tests here, with the pack and a few nodes that only tests use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline
from tests.comfyui import PICTURES, ComfyServer, require_host
from tests.host.graphs import SMALL, TINY

PROBE = Path(__file__).parent / "probe.py"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests here."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def started(
    tmp_path_factory: pytest.TempPathFactory, tiny_mini: CTSRPipeline, tiny_sd: CTSRPipeline
) -> Iterator[tuple[ComfyServer, dict[str, Any]]]:
    """The host, and what `/probe` told before any prompt."""
    server = ComfyServer(require_host(), tmp_path_factory.mktemp("comfyui"), extra_nodes=[PROBE])
    models, pictures = server.base / "models" / "ctsr", server.base / "input"
    tiny_mini.save_single_file(models / TINY, dtype=torch.float32)
    tiny_sd.save_single_file(models / "tiny-sd.safetensors", dtype=torch.float32)
    with Image.open(PICTURES / "hippo.png") as hippo:
        hippo.crop((100, 60, 140, 88)).save(pictures / SMALL)
        hippo.crop((100, 60, 137, 89)).save(pictures / "odd.png")
        hippo.crop((100, 60, 101, 61)).save(pictures / "pixel.png")
    with server:
        yield server, server.get("/probe")


@pytest.fixture(scope="session")
def server(started: tuple[ComfyServer, dict[str, Any]]) -> ComfyServer:
    """Started once: tests change nothing in it that another may see."""
    return started[0]


@pytest.fixture(scope="session")
def at_start(started: tuple[ComfyServer, dict[str, Any]]) -> dict[str, Any]:
    """`modules`, `resident` and `models` of the host before any prompt."""
    return started[1]
