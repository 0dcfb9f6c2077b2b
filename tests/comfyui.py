"""A real ComfyUI for tests and benchmarks: finding an installed one, starting it, queueing prompts, listening.

The host is run as a program of its own, in its own environment, and spoken to over HTTP and its websocket. It gets a
temporary base directory, so that nothing of the user's is read or changed.
"""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import Self
from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "examples" / "images"
DEFAULT_PATH = Path.home() / "comfy" / "ComfyUI"
OPTIONS = ("--cpu", "--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:")
START_SECONDS = 120
PROMPT_SECONDS = 120
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Speaks to this machine, whatever proxy the environment names."""
ENDINGS = ("execution_success", "execution_error", "execution_interrupted")

Graph = Mapping[str, Mapping[str, Any]]
"""A prompt in the host's API format: {id: {"class_type": ..., "inputs": {...}}}."""


@dataclass(frozen=True)
class Host:
    """An installed ComfyUI.

    Attributes:
        path: of its checkout.
        python: of its environment.
    """

    path: Path
    python: Path


def find_host() -> Host | None:
    """The host at COMFYUI_PATH, else ~/comfy/ComfyUI; its Python is COMFYUI_PYTHON, its .venv's or the running one."""
    path = Path(os.environ.get("COMFYUI_PATH") or DEFAULT_PATH).expanduser()
    if not (path / "main.py").is_file():
        return None
    own = path / ".venv" / "bin" / "python"
    return Host(path, Path(os.environ.get("COMFYUI_PYTHON") or (own if own.is_file() else sys.executable)))


def require_host() -> Host:
    """`find_host`; without one the test is skipped, or fails where REQUIRE_COMFYUI=1."""
    host = find_host()
    if host is not None:
        return host
    path = os.environ.get("COMFYUI_PATH") or DEFAULT_PATH
    reason = (
        f"No ComfyUI at {path}: clone github.com/Comfy-Org/ComfyUI there, or set COMFYUI_PATH, and install its "
        "requirements.txt into .venv beside its main.py, or set COMFYUI_PYTHON."
    )
    if os.environ.get("REQUIRE_COMFYUI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class PromptRefusedError(Exception):
    """The host refused a prompt before it ran; `errors` are those of its nodes, as it answered."""

    def __init__(self, answer: Mapping[str, Any]):
        super().__init__(json.dumps(answer))
        self.errors: Mapping[str, Any] = answer.get("node_errors") or {}


@dataclass
class Run:
    """What became of a prompt.

    Attributes:
        prompt_id: the host's name for it.
        events: every websocket message about it, in order: {"type": ..., "data": {...}}.
        outputs: what its output nodes told the browser, by node.
    """

    prompt_id: str
    events: list[dict[str, Any]] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)

    def data(self, kind: str) -> list[dict[str, Any]]:
        """Of every event of a type."""
        return [event["data"] for event in self.events if event["type"] == kind]

    @property
    def ending(self) -> str:
        """One of `ENDINGS`."""
        return self.events[-1]["type"]

    @property
    def cached(self) -> set[str]:
        """Nodes whose results were kept from an earlier prompt."""
        return {node for data in self.data("execution_cached") for node in data["nodes"]}

    @property
    def executed(self) -> list[str]:
        """Nodes that ran, in order."""
        return [data["node"] for data in self.data("executing") if data["node"] is not None]

    @property
    def error(self) -> str:
        """Message of the exception that ended it, "" if none did."""
        return "".join(data["exception_message"] for data in self.data("execution_error")).strip()


class Events:
    """A websocket of the host: iterate over its messages (previews left out), of everything that this client queued."""

    def __init__(self, socket_: ClientConnection, client: str):
        self.socket, self.client = socket_, client

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            message = self.socket.recv(timeout=PROMPT_SECONDS)
            if isinstance(message, str):
                yield json.loads(message)

    def of(self, prompt_id: str) -> Iterator[dict[str, Any]]:
        """Messages about one prompt, up to and including its ending."""
        for event in self:
            if event["data"].get("prompt_id") == prompt_id:
                yield event
                if event["type"] in ENDINGS:
                    return


class ComfyServer:
    """The host as a subprocess; use as a context manager.

    Args:
        host: an installed ComfyUI.
        base: an empty folder for its models, pictures, custom nodes and settings.
        with_pack: whether this checkout lies in its custom_nodes, under a random name.
        extra_nodes: files to copy into its custom_nodes.
        options: further command-line options.
    """

    def __init__(
        self,
        host: Host,
        base: Path,
        *,
        with_pack: bool = True,
        extra_nodes: Sequence[Path] = (),
        options: Sequence[str] = (),
    ):
        self.host, self.base, self.options = host, base, options
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.pack = base / "custom_nodes" / f"some-folder-{secrets.token_hex(3)}"
        self.log_file = base / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.prepare(with_pack, extra_nodes)

    def prepare(self, with_pack: bool, extra_nodes: Sequence[Path]) -> None:
        """Fills the base directory."""
        for name in ("custom_nodes", "input", "output", "models/ctsr"):
            (self.base / name).mkdir(parents=True)
        for picture in PICTURES.iterdir():
            shutil.copy(picture, self.base / "input")
        shutil.copy(PICTURES / "hippo.png", self.base / "input" / "example.png")  # LoadImage's default
        if with_pack:
            self.pack.symlink_to(ROOT, target_is_directory=True)
        for file in extra_nodes:
            shutil.copy(file, self.base / "custom_nodes")

    def start(self) -> None:
        """Starts the host and waits until it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time; with the end of its log.
        """
        command = [str(self.host.python), "main.py", "--port", str(self.port), "--base-directory", str(self.base)]
        if frontend := os.environ.get("COMFYUI_FRONTEND"):  # another than the host's own: `static` of its package
            command += ["--front-end-root", frontend]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *OPTIONS, *self.options],
                cwd=self.host.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"ComfyUI at {self.host.path} did not start:\n{self.log[-4000:]}")
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it is ready."""
        try:
            return bool(self.get("/system_stats"))
        except OSError:
            return False

    def stop(self) -> None:
        """Ends the host by SIGTERM, as a service manager does."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """All that it has printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def get(self, path: str) -> Any:
        """JSON of a route."""
        with DIRECT.open(self.url + path, timeout=PROMPT_SECONDS) as answer:
            return json.load(answer)

    def post(self, path: str, content: Mapping[str, Any]) -> Any:
        """JSON that a route answers, None if nothing."""
        request = urllib.request.Request(
            self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        with DIRECT.open(request, timeout=PROMPT_SECONDS) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def submit(self, prompt: Graph, client: str = "") -> str:
        """Queues a prompt for a client of the websocket; returns its id.

        Raises:
            PromptRefusedError: the host found an error in it.
        """
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": client})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise PromptRefusedError(json.loads(error.read())) from error

    def interrupt(self) -> None:
        """Cancels what runs."""
        self.post("/interrupt", {})

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The host's record of a prompt that has ended: status and outputs."""
        deadline = time.monotonic() + PROMPT_SECONDS
        while time.monotonic() < deadline:
            if (record := self.get(f"/history/{prompt_id}").get(prompt_id)) is not None:
                return record
            time.sleep(0.01)  # it is written a moment after the last event
        raise TimeoutError(f"The host keeps no record of prompt {prompt_id}.")

    def output(self, picture: Mapping[str, str]) -> Path:
        """File of a picture that an output node names."""
        return self.base / picture["type"] / picture["subfolder"] / picture["filename"]

    # --- websocket ----------------------------------------------------------------------------------------------------

    @contextmanager
    def events(self) -> Iterator[Events]:
        """Listens as a new client."""
        client = secrets.token_hex(8)
        address = f"ws://127.0.0.1:{self.port}/ws?clientId={client}"
        with connect(address, max_size=None, proxy=None) as socket_:
            yield Events(socket_, client)

    def run(self, prompt: Graph) -> Run:
        """Queues a prompt and listens until it ends, however it ends.

        Raises:
            PromptRefusedError: the host found an error in it.
        """
        with self.events() as events:
            run = Run(self.submit(prompt, events.client))
            run.events.extend(events.of(run.prompt_id))
        run.outputs = self.history(run.prompt_id)["outputs"]
        return run


def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
