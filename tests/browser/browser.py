"""A real chromium, and in it a real host: what a user does and sees, by commands to `driver.mjs`."""

import base64
import io
import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from typing_extensions import Self

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctsr-browser-tests"
PACKAGE = "playwright-core"
INSTALL_SECONDS = 120
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")


class MissingToolError(Exception):
    """What the machine lacks to drive a browser, and how to get it."""


@dataclass(frozen=True)
class Tools:
    """What drives a browser.

    Attributes:
        node: the program.
        chromium: the program.
        modules: folder that holds playwright-core.
    """

    node: str
    chromium: str
    modules: Path


def find_tools() -> Tools:
    """Node.js, chromium, and playwright-core from NODE_PATH, else from a cache, into which npm fetches it once.

    Raises:
        MissingToolError: one of them cannot be had.
    """
    node, chromium = shutil.which("node"), next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if node is None:
        raise MissingToolError("No Node.js on the PATH: install nodejs and npm.")
    if chromium is None:
        raise MissingToolError("No chromium on the PATH: install Debian's package, or chromium of another source.")
    return Tools(node, chromium, find_modules())


def find_modules() -> Path:
    """Folder that holds playwright-core; raises MissingToolError where it can neither be found nor fetched."""
    cached = CACHE / "node_modules"
    given = [Path(path) for path in os.environ.get("NODE_PATH", "").split(os.pathsep) if path]
    found = [path for path in (*given, cached) if (path / PACKAGE / "package.json").is_file()]
    if found:
        return found[0]
    npm = shutil.which("npm")
    if npm is None:
        raise MissingToolError(f"No {PACKAGE}, and no npm to fetch it: install npm, or set NODE_PATH.")
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--prefix", str(CACHE), "--no-audit", "--no-fund", PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if result.returncode:
        raise MissingToolError(f"npm could not fetch {PACKAGE}: {result.stderr.strip()[-500:]}")
    return cached


@dataclass(frozen=True)
class Graph:
    """What lies on the canvas.

    Attributes:
        types: of its nodes, in their order.
        missing: those that the host does not have.
    """

    types: list[str]
    missing: list[str]


class Run:
    """What the host told the browser between the click on Run and the end, in order."""

    def __init__(self, events: Sequence[Mapping[str, Any]]):
        self.events = events

    def details(self, name: str) -> list[Any]:
        """Of every event of a name."""
        return [event["detail"] for event in self.events if event["name"] == name]

    @property
    def ending(self) -> str:
        """Name of the last event, "" if the host refused the prompt."""
        return self.events[-1]["name"] if self.events else ""

    @property
    def cached(self) -> set[str]:
        """Ids of nodes that did not run again."""
        return {node for detail in self.details("execution_cached") for node in detail["nodes"]}

    @property
    def executed(self) -> dict[str, Any]:
        """What output nodes showed, by their id."""
        return {detail["node"]: detail["output"] for detail in self.details("executed")}


class Driver:
    """A chromium that does what a script beside this file reads; use as a context manager.

    Args:
        tools: what drives it.
        script: name of the file.
        url: that it shows.
    """

    def __init__(self, tools: Tools, script: str, url: str):
        self.process = subprocess.Popen(
            [tools.node, str(HERE / script), url, tools.chromium],
            env={**os.environ, "NODE_PATH": str(tools.modules)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.communicate(timeout=30)

    def call(self, command: str, *arguments: Any) -> Any:
        """Result of a command of the script; raises RuntimeError where the page did not do it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"command": command, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the driver ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]


class Browser(Driver):
    """The host's page in a fresh chromium."""

    def __init__(self, tools: Tools, url: str):
        super().__init__(tools, "driver.mjs", url)

    def open(self, node_type: str) -> None:
        """Loads the page, and waits until it knows a node."""
        self.call("open", node_type)

    def drop(self, name: str, workflow: str) -> Graph:
        """Drops a workflow's file on the canvas."""
        return Graph(**self.call("drop", {"name": name, "text": workflow}))

    def run(self) -> Run:
        """Clicks Run and waits for the end, or for a dialog that says why there is none."""
        return Run(self.call("run"))

    def slide(self, node: str, widget: str, value: float) -> float:
        """Drags the slider of a node, named by type or title; returns the value that it took."""
        return self.call("slide", node, widget, value)

    def dial(self) -> dict[str, Any]:
        """What the live dial shows: word, faithful and exact (opacities), urls; moves and heard, see `driver.mjs`."""
        return self.call("dial")

    def widgets(self, node: str) -> dict[str, Any]:
        """Values of a node's widgets by name, in order."""
        return self.call("widgets", node)

    def pictures(self) -> list[dict[str, Any]]:
        """What nodes show: {"type", "title", "sizes": [[width, height]], "urls"}."""
        return self.call("pictures")

    def look(self, node: str) -> Image.Image:
        """The window where a node is, RGB."""
        return Image.open(io.BytesIO(base64.b64decode(self.call("look", node)))).convert("RGB")

    def dialog(self) -> str:
        """Text of the dialog that covers the page."""
        return self.call("dialog")

    def dismiss(self) -> None:
        """Closes it."""
        self.call("dismiss")

    def help(self, node: str) -> str:
        """Text of a node's help page, opened by its info button."""
        return self.call("help", node)

    def place(self, name: str) -> Graph:
        """Adds what the node library has under a name."""
        return Graph(**self.call("place", name))

    def search(self, text: str) -> list[str]:
        """Display names that the search box lists for a text, on an empty canvas."""
        self.call("clear")
        return self.call("search", text)

    def add(self, node_type: str, values: Mapping[str, Any]) -> None:
        """Adds a node with values of its widgets."""
        self.call("add", node_type, values)

    def connect(self, links: Sequence[tuple[str, str, str, str]]) -> None:
        """Connects nodes: (node, output, node, input)."""
        self.call("connect", links)

    def templates(self, pack: str) -> dict[str, int]:
        """What the template browser shows of a pack, named by its folder: name and width of each one's picture."""
        return self.call("templates", pack)

    def choose(self, pack: str, title: str) -> Graph:
        """Loads a template of a pack, named by its folder, from the template browser."""
        return Graph(**self.call("choose", pack, title))

    def begin(self) -> None:
        """Shows the workflow that the host begins with."""
        self.call("begin")

    def paste(self, picture: bytes) -> None:
        """Empties the canvas by a click and keys, and pastes a PNG, which becomes a node."""
        self.call("paste", base64.b64encode(picture).decode())

    def follow(self, node: str, text: str, name: str) -> dict[str, int]:
        """Drags a wire from a node's first output to the empty canvas, types a text, and takes a name from the list.

        Returns:
            Presses that it took beyond the wire: `placed`, 1 on newer frontends, where the node follows the mouse until
            then, and `missed`, one for each wire that a busy page missed.
        """
        return self.call("follow", node, text, name)

    def presses(self) -> int:
        """How often a button of the mouse was pressed since the page was opened."""
        return self.call("presses")

    def complaints(self) -> list[str]:
        """Console errors and uncaught exceptions since the last time."""
        return self.call("complaints")
