"""`ctsr app` as a program of its own, and users of its page, by commands to `app_driver.mjs`."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from typing_extensions import Self

from tests.browser.browser import Driver, Tools

START_SECONDS = 90
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Speaks to this machine, whatever proxy the environment names."""


class AppServer:
    """The running page; use as a context manager.

    Args:
        base: an empty folder, which stands for the user's home and holds the system's temporary folder.
    """

    def __init__(self, base: Path):
        self.home, self.temporary = base / "home", base / "tmp"
        for folder in (self.home, self.temporary):
            folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        environment = {**os.environ, "HOME": str(self.home), "TMPDIR": str(self.temporary)}
        environment.pop("XDG_CACHE_HOME", None)
        command = [sys.executable, "-m", "ctsr", "app", "--port", str(self.port)]
        self.process = subprocess.Popen(command, cwd=self.home, env=environment)
        try:
            self.wait_for_answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def wait_for_answer(self) -> None:
        """Until the page can be had; raises what went wrong when it takes too long or the program has ended."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                DIRECT.open(self.url, timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def __exit__(self, *_exception: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)

    def files(self) -> list[str]:
        """Files in the home and the temporary folder, but for matplotlib's cache of fonts, which gradio loads."""
        found = [path for folder in (self.home, self.temporary) for path in folder.rglob("*") if path.is_file()]
        return sorted(str(path) for path in found if "matplotlib" not in path.parts)


class App(Driver):
    """Users of the page; every method's first argument is a user's name.

    Args:
        tools: what drives the browser.
        server: whose page it is.
    """

    def __init__(self, tools: Tools, server: AppServer):
        super().__init__(tools, "app_driver.mjs", server.url)

    def open(self, user: str) -> None:
        """A new user looks at the page."""
        self.call("open", user)

    def choose(self, user: str, name: str, data: bytes) -> None:
        """Chooses a file, in place of the one before."""
        self.call("choose", user, {"name": name, "base64": base64.b64encode(data).decode()})

    def upscale(self, user: str) -> str | None:
        """Clicks Upscale; the message of what went wrong, None once the exact picture is shown."""
        return self.call("upscale", user)

    def drag(self, user: str, *values: float) -> dict[str, Any]:
        """Drags t; the page's state before the button was released, and `asked`: what it asked of the server."""
        return self.call("drag", user, values)

    def layer(self, user: str, name: str) -> Image.Image:
        """One of the pictures that lie over each other, RGB."""
        data = self.call("layer", user, name).partition(",")[2]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def save(self, user: str) -> tuple[str, Image.Image]:
        """The saved file: its name and the picture."""
        saved = self.call("save", user)
        return saved["name"], Image.open(io.BytesIO(base64.b64decode(saved["base64"])))

    def state(self, user: str) -> dict[str, Any]:
        """What the page shows: t, reasons, report, and of the picture its title, opacity, exact, cut, word, width."""
        return self.call("state", user)
