"""From a picture to the enlarged one in ComfyUI, as a newcomer goes: seconds, and presses of the mouse.

    python -m benchmarks.newcomer         the ComfyUI of COMFYUI_PATH

Three ways, each in a host and a page that were just started: by the template browser, by a node that the search box
finds, and by the blueprint that it finds. The time is from the first press until the canvas shows 1024x768 pixels made
of 256x192, the host's first run among it, whose networks are still to be loaded. A script clicks and types at once, but
for a second that it leaves each search box for its list: what a person takes to read comes on top.
"""

import json
import tempfile
import time
from pathlib import Path

from tests.browser.browser import Browser, find_tools
from tests.browser.conftest import SETTINGS
from tests.comfyui import ROOT, ComfyServer, require_host

NODE = "Upscale & Restore (CTSR Super Resolution)"
BLUEPRINT = next((ROOT / "subgraphs").glob("*.json"))
WAYS = ("template", "node", "blueprint")
LARGE = [1024, 768]


def host(base: Path) -> ComfyServer:
    """A host that shows a newcomer's page, with the blueprint where older ones look for it."""
    server = ComfyServer(require_host(), base / "host")
    user = server.base / "user" / "default"
    (user / "subgraphs").mkdir(parents=True)
    (user / "subgraphs" / BLUEPRINT.name).write_bytes(BLUEPRINT.read_bytes())
    settings = {name: value for name, value in SETTINGS.items() if name != "LiteGraph.Canvas.MaximumFps"}
    (user / "comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return server


def prepare(browser: Browser, server: ComfyServer, way: str) -> None:
    """All clicks and keys before Run."""
    if way == "template":
        browser.choose(server.pack.name, "Upscale in one node")
        return
    text, name = ("restore", NODE) if way == "node" else ("upscale", BLUEPRINT.stem)
    browser.paste((server.base / "input" / "example.png").read_bytes())
    browser.follow("Load Image", text, name)
    browser.follow(name, "save image", "Save Image")


def go(way: str) -> None:
    """Goes one way and prints it."""
    with tempfile.TemporaryDirectory() as base:
        server = host(Path(base))
        with server, Browser(find_tools(), server.url) as browser:
            browser.open("CTSRUpscale")
            start = time.perf_counter()
            prepare(browser, server, way)
            ready = time.perf_counter()
            browser.run()
            shown = [size for node in browser.pictures() for size in node["sizes"]]
            assert LARGE in shown, shown
            end = time.perf_counter()
            print(
                f"{way}: {browser.presses()} presses, {ready - start:.1f} s to Run, {end - ready:.1f} s to the picture"
            )


if __name__ == "__main__":
    for way in WAYS:
        go(way)
