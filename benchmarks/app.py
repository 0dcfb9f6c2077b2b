"""How soon `ctsr app` shows a moved dial, in a real chromium: from the move to the end of the frame that shows it.

    python -m benchmarks.app

A picture of 256x256 becomes 1024x1024; its t is dragged there and back. The page asks nothing of the server meanwhile.
"""

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.browser.app import App, AppServer
from tests.browser.browser import find_tools

ROOT = Path(__file__).resolve().parents[1]
SIDE, MOVES = 256, 40


def picture() -> bytes:
    """A photograph as a PNG."""
    buffer = io.BytesIO()
    Image.open(ROOT / "examples" / "images" / "colosseum.jpg").resize((SIDE, SIDE)).save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    """Prints median, nine tenths and the worst."""
    with (
        tempfile.TemporaryDirectory() as base,
        AppServer(Path(base)) as server,
        App(find_tools(), server) as pages,
    ):
        pages.open("ann")
        pages.choose("ann", "picture.png", picture())
        pages.upscale("ann")
        there = np.linspace(0.02, 0.98, MOVES // 2).tolist()
        state = pages.drag("ann", *there, *reversed(there))
        times = np.array(pages.call("times", "ann"))
        median, most, worst = np.quantile(times, (0.5, 0.9, 1))
        asked = len(state["asked"])
        print(f"{len(times)} moves: median {median:.0f} ms, 9 of 10 {most:.0f}, worst {worst:.0f}; {asked} requests")


if __name__ == "__main__":
    main()
