"""What the library may import, what the wheel holds, and that the mini needs neither extras, network nor GPU."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "ctsr").rglob("*.py"))
USERS_OF_IT = re.compile(r"(comfy\w*|folder_paths|nodes|training|tests|benchmarks)(\.|$)")
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "venv", "__pycache__", ".*_cache", "*.egg-info", "build", "dist", "runs", "examples"
)


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that are imported in `tree`, at the top or inside functions; relative ones as such."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module.rstrip('.')}.{alias.name}" for alias in node.names if node.level > 1)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield str(node.args[0].value)


def at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: all but the bodies of functions."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [*node.decorator_list, *node.args.defaults]
        elif not isinstance(node, ast.Lambda):
            pending += ast.iter_child_nodes(node)


def test_the_walk_sees_every_kind_of_import():
    source = "import comfy.utils\ndef f():\n    from nodes import x\n    importlib.import_module('training.loop')\n"
    assert [name for name in imported(ast.parse(source)) if USERS_OF_IT.match(name)] == [
        "comfy.utils",
        "nodes",
        "training.loop",
    ]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_imports_none_of_its_users(path):
    names = list(imported(ast.parse(path.read_text(encoding="utf-8"))))
    assert not [name for name in names if USERS_OF_IT.match(name)]
    depth = len(path.relative_to(ROOT / "ctsr").parts)
    outside = [name for name in names if len(name) - len(name.lstrip(".")) > depth]
    assert not outside, "reaches out of ctsr"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_library_probes_no_device_at_import(path):
    probes = {"cuda", "mps", "xpu", "is_available", "device_count"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [ast.unparse(n) for n in at_import(tree) if isinstance(n, ast.Attribute) and n.attr in probes]


def test_wheel_holds_the_library_and_nothing_else(tmp_path):
    shutil.copytree(ROOT, tmp_path / "tree", ignore=LEFT_OUT)
    (tmp_path / "tree/nodes").mkdir(exist_ok=True)
    (tmp_path / "tree/nodes/__init__.py").touch()
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path / "tree", capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {re.sub(r"-.*\.dist-info$", ".dist-info", name.split("/")[0]) for name in names} == {
        "ctsr",
        "ctsr.dist-info",
    }
    sources = [*LIBRARY, ROOT / "ctsr/py.typed", *(ROOT / "ctsr/weights").glob("*.[sm][ad]*")]
    assert {path.relative_to(ROOT).as_posix() for path in sources} <= names


HIDDEN = ("transformers", "peft", "xformers", "accelerate")
MINI = """
import json, sys

HIDDEN = set(sys.argv[1].split(","))
sockets = []


class Without:
    '''A finder of sys.meta_path that does not find what is hidden: as if it were not installed.'''

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)


def refuse_sockets(event, args):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo"):
        sockets.append(event)
        raise OSError(event + " in a test without a network")


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import socket

socket.has_ipv6 = False  # urllib3, which comes with diffusers, else binds a local socket at import to try IPv6
sys.addaudithook(refuse_sockets)

from ctsr import CTSRPipeline
import torch

at_import = torch.cuda.is_initialized()
from PIL import Image

result = CTSRPipeline.mini()(Image.new("RGB", (24, 16), (90, 120, 60)), t=0.5)
print(json.dumps({
    "size": result.images[0].size,
    "hidden": sorted(HIDDEN & {name.split(".")[0] for name in sys.modules}),
    "sockets": sockets,
    "gpu": [at_import, torch.cuda.is_initialized()],
}))
"""


def test_mini_needs_no_extra_no_socket_and_no_gpu():
    command = [sys.executable, "-c", MINI, ",".join(HIDDEN)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "size": [96, 64],
        "hidden": [],
        "sockets": [],
        "gpu": [False, False],
    }


def test_host_requirements_are_floors_of_the_project():
    """requirements.txt repeats lines of pyproject.toml; they must not drift apart, and nothing there may move torch."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert wanted
    assert [line for line in wanted if f'"{line}"' not in project] == []
    assert not [line for line in wanted if re.match(r"torch|xformers|numpy", line)]
