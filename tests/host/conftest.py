"""One real host for all tests here, with the pack and a few nodes that only tests use."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctsr import CTSRPipeline
from tests.comfyui import ComfyServer, require_host
from tests.host.graphs import fill

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
    fill(server, tiny_mini, tiny_sd)
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
