"""One host and one chromium for all tests here, with a small picture and a short video to enlarge."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.browser import Browser, MissingToolError, Tools, find_tools
from tests.comfyui import ROOT, ComfyServer, require_host

SIZE = (96, 64)
"""Width and height of the picture and of the video."""
VIDEO = Path(__file__).with_name("video.py")
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else a tour covers the Run button
    "Comfy.InstalledVersion": "99.0.0",  # what is by default for who begins today
    "Comfy.Minimap.Visible": False,  # it covers nodes
    "LiteGraph.Canvas.MaximumFps": 10,  # drawing takes the processor from the host
    "Comfy.VueNodes.Enabled": os.environ.get("COMFYUI_NODES_2") == "1",
}
BLUEPRINTS = ROOT / "subgraphs"
OWN_ERRORS = (
    "/api/userdata",
    "/user.css",
    "/favicon.ico",
    "/en.md",
    "reading 'id'",
    "null (setting 'value')",
    "/api/jobs",
    "/templates/index",
    "graph accessed before initialization",
    "huggingface.co",
    "api.comfy.org",
    "core workflow templates",
)
"""What the frontend complains of by itself: files of the user's that do not exist, English help pages (which it looks
for before those of no language), its own start without a workflow, its search box when it closes, what a host
older than itself does not answer, and what the host's own security policy keeps it from fetching."""


@pytest.fixture(scope="session")
def tools() -> Tools:
    """Skips, or fails where REQUIRE_COMFYUI=1, when the machine cannot drive a browser."""
    try:
        return find_tools()
    except MissingToolError as error:
        if os.environ.get("REQUIRE_COMFYUI") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """Started once."""
    server = ComfyServer(require_host(), tmp_path_factory.mktemp("comfyui"))
    with Image.open(server.base / "input" / "hippo.png") as picture:
        picture.resize(SIZE).save(server.base / "input" / "example.png")
    run_video(server, "write", server.base / "input" / "example.mp4")
    user = server.base / "user" / "default"
    shutil.copytree(BLUEPRINTS, user / "subgraphs")
    (user / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    with server:
        yield server


def run_video(server: ComfyServer, command: str, path: Path) -> str:
    """What video.py prints, run in the host's environment, which can encode video."""
    width, height = map(str, SIZE)
    arguments = [str(server.host.python), str(VIDEO), command, str(path), width, height]
    return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="session")
def page(server: ComfyServer, tools: Tools) -> Iterator[Browser]:
    """Opened once; `browser` is what tests use."""
    with Browser(tools, server.url) as page:
        page.open("CTSRUpscale")
        yield page


@pytest.fixture
def browser(page: Browser) -> Iterator[Browser]:
    """The page; fails a test during which the console complained."""
    yield page
    complaints = [line for line in page.complaints() if not any(own in line for own in OWN_ERRORS)]
    assert complaints == []
