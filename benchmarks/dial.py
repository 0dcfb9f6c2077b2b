"""How soon a moved dial is seen, in a real chromium: from each move of the slider to the end of the frame after it.

    python -m benchmarks.dial app         `ctsr app`
    python -m benchmarks.dial comfyui     Live Dial in the ComfyUI of COMFYUI_PATH

A picture of 256x256 becomes 1024x1024; its t is dragged there and back. Nothing is asked of a server meanwhile.
"""

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from tests.browser.app import App, AppServer
from tests.browser.browser import Browser, find_tools
from tests.browser.conftest import SETTINGS
from tests.comfyui import ROOT, ComfyServer, require_host

SIDE, MOVES = 256, 40


def picture() -> bytes:
    """A photograph as a PNG."""
    buffer = io.BytesIO()
    Image.open(ROOT / "examples" / "images" / "colosseum.jpg").resize((SIDE, SIDE)).save(buffer, "PNG")
    return buffer.getvalue()


def show(times: list[float]) -> None:
    """Prints median, nine tenths and the worst."""
    median, most, worst = np.quantile(times, (0.5, 0.9, 1))
    print(f"{len(times)} moves: median {median:.0f} ms, 9 of 10 {most:.0f}, worst {worst:.0f}")


def app() -> None:
    """The page."""
    with (
        tempfile.TemporaryDirectory() as base,
        AppServer(Path(base)) as server,
        App(find_tools(), server) as pages,
    ):
        pages.open("ann")
        pages.choose("ann", "picture.png", picture())
        pages.upscale("ann")
        there = np.linspace(0.02, 0.98, MOVES // 2).tolist()
        pages.drag("ann", *there, *reversed(there))
        show(pages.call("times", "ann"))


def comfyui() -> None:
    """The node."""
    workflow = ROOT / "examples" / "Drag t on the picture.json"
    with tempfile.TemporaryDirectory() as base:
        server = ComfyServer(require_host(), Path(base) / "host")
        (server.base / "input" / "example.png").write_bytes(picture())
        user = server.base / "user" / "default"
        user.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in SETTINGS.items() if name != "LiteGraph.Canvas.MaximumFps"}
        (user / "comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
        with server, Browser(find_tools(), server.url) as browser:
            browser.open("CTSRDial")
            browser.drop(workflow.name, workflow.read_text(encoding="utf-8"))
            browser.run()
            for t in (0.8, 0.2) * (MOVES // 10):  # five moves each
                browser.slide("CTSRDial", "t", t)
            show(browser.dial()["moves"])


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"app": app, "comfyui": comfyui})
