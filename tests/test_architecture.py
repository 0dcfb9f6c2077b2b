"""What library and nodes may import and call, what the wheel holds, and that the mini needs neither extras, network
nor GPU, in Python and as the nodes use it."""

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
NODES = sorted((ROOT / "nodes").rglob("*.py"))
USERS_OF_IT = re.compile(r"(comfy\w*|folder_paths|server|nodes|training|tests|benchmarks)(\.|$)")
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
    """Every node that runs when the module is imported: not the bodies of functions, nor `if TYPE_CHECKING`."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [*node.decorator_list, *node.args.defaults]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
        elif not isinstance(node, ast.Lambda):
            pending += ast.iter_child_nodes(node)


def of_file(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_in_tree(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_walk_sees_every_kind_of_import():
    source = (
        "import comfy.utils\ndef f():\n    from nodes import x\n    importlib.import_module('training.engine.loop')\n"
    )
    assert [name for name in imported(ast.parse(source)) if USERS_OF_IT.match(name)] == [
        "comfy.utils",
        "nodes",
        "training.engine.loop",
    ]


@pytest.mark.parametrize("path", LIBRARY, ids=name_in_tree)
def test_library_imports_none_of_its_users(path):
    names = list(imported(of_file(path)))
    assert not [name for name in names if USERS_OF_IT.match(name)]
    depth = len(path.relative_to(ROOT / "ctsr").parts)
    outside = [name for name in names if len(name) - len(name.lstrip(".")) > depth]
    assert not outside, "reaches out of ctsr"


@pytest.mark.parametrize("path", LIBRARY, ids=name_in_tree)
def test_library_probes_no_device_at_import(path):
    probes = {"cuda", "mps", "xpu", "is_available", "device_count"}
    tree = of_file(path)
    assert not [ast.unparse(n) for n in at_import(tree) if isinstance(n, ast.Attribute) and n.attr in probes]


# ----------------------------------------------------------------------------------------------------- rooms of ctsr

ROOMS = {
    "errors": "",
    "addresses": "errors",
    "families": "",
    "precision": "",
    "whole_file": "",
    "models": "families precision",
    "checkpoints": "errors families models precision whole_file",
    "tiling": "errors families models precision",
    "images": "errors families whole_file",
    "assess": "images",
    "runtime": "checkpoints errors images models tiling",
    "arguments": "families images runtime tiling",
    "pipeline": "arguments assess checkpoints families images models runtime tiling",
    "load": "checkpoints pipeline",
    "modular": "arguments checkpoints images pipeline runtime",
    "publish": "checkpoints errors models modular pipeline",
    "convert": "checkpoints errors families load models pipeline whole_file",
    "app": "addresses assess checkpoints convert errors families images load pipeline precision publish runtime tiling "
    "whole_file",
    "__init__": "errors families models pipeline",
    "__main__": "app",
}
"""What each room (a file or folder of ctsr) imports of the others: rooms above it in this table alone."""
OPTIONAL = {
    "cv2": "a heavy extra of the command line",
    "fsspec": "addresses of pictures and backups, which most runs have none of",
    "pyarrow": "comes with ray, an extra",
    "pyarrow.parquet": "comes with ray, an extra",
    "ray": "an extra",
    "ray.data": "an extra",
    "gradio": "an extra",
    "diffusers.loaders.lora_pipeline": "needs transformers and peft, which are extras",
    "diffusers.loaders.single_file_utils": "needs transformers, an extra",
    "huggingface_hub": "folders on disk need none of it",
    "peft": "an extra",
    "peft.tuners.tuners_utils": "an extra",
    "pyiqa": "an extra",
    "transformers": "an extra",
}
"""What a function may import when it is called, and why not its file."""
STARTS_QUICKLY = ("app/arguments.py", "app/cli.py", "app/cli_batch.py", "app/cli_hub.py", "app/cli_looks.py")
LAZY = dict.fromkeys(STARTS_QUICKLY, "`ctsr --help` starts without torch")
"""Files whose functions may import anything."""


def neighbours(path: Path, tree: ast.AST) -> set[str]:
    """The files of ctsr that a file of it imports in `tree`, as dotted names below ctsr."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*path.parent.relative_to(ROOT / "ctsr").parts]
            base = [*base[: len(base) + 1 - node.level], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                place = ROOT.joinpath("ctsr", *base, alias.name)
                is_module = place.with_suffix(".py").is_file() or place.is_dir()
                found.add(".".join([*base, alias.name] if is_module else base or ["__init__"]))
    return found


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "ctsr").with_suffix("").parts)


def test_the_table_of_rooms_only_goes_down():
    names = list(ROOMS)
    for index, (room, below) in enumerate(ROOMS.items()):
        assert set(below.split()) <= set(names[:index]), room
    assert set(names) == {dotted(path).split(".")[0] for path in LIBRARY}


@pytest.mark.parametrize("path", LIBRARY, ids=name_in_tree)
def test_rooms_import_what_the_table_says(path):
    own = dotted(path).split(".")[0]
    rooms = {name.split(".")[0] for name in neighbours(path, of_file(path))}
    allowed = {own, *ROOMS[own].split(), *(["__init__"] if own == "app" else [])}  # the version
    assert not rooms - allowed


def test_no_files_import_each_other_in_a_circle():
    graph = {dotted(path).removesuffix(".__init__"): neighbours(path, of_file(path)) for path in LIBRARY}
    while leaves := {name for name, needs in graph.items() if not needs & graph.keys() - {name}}:
        graph = {name: needs for name, needs in graph.items() if name not in leaves}
    assert not graph


@pytest.mark.parametrize("path", LIBRARY, ids=name_in_tree)
def test_functions_import_optional_libraries_alone(path):
    if path.relative_to(ROOT / "ctsr").as_posix() in LAZY:
        return
    functions = [node for node in ast.walk(of_file(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {name for function in functions for name in imported(function)}
    assert not {name for name in inside if name.startswith(".") or name not in OPTIONAL}


def test_the_walk_resolves_relative_imports():
    tree = ast.parse("from . import heap\nfrom .sink import move\nfrom ..families import Dial\nfrom .. import x")
    assert neighbours(ROOT / "ctsr/tiling/networks.py", tree) == {"tiling.heap", "tiling.sink", "families", "__init__"}


# ------------------------------------------------------------------------------------------------------------ nodes

MANAGES_MEMORY = "host.py"
OF_THE_HOST = re.compile(r"(comfy|comfy_api|comfy_execution|folder_paths|server)(\.|$)")
HOSTLESS = {
    "__init__.py",
    "checks.py",
    "latents.py",
    "masks.py",
    "steady.py",
    "target.py",
    "values.py",
    "video_frames.py",
}
HEAVY = re.compile(r"(diffusers|transformers|peft|accelerate|huggingface_hub|xformers|training|ctsr)(\.|$)")


def imported_at_import(tree: ast.Module) -> set[str]:
    """Full names of the modules that importing a file imports."""
    statements = [node for node in at_import(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for statement in statements for name in imported(statement)}


def test_the_walk_tells_what_runs_at_import_from_what_does_not():
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..ctsr import a\nelse:\n    import b\n"
        "class C:\n    import c\n    def f(self, x=d.e):\n        from ..ctsr import f\n"
    )
    assert imported_at_import(ast.parse(source)) == {"typing", "b", "c"}
    assert "..ctsr.f" in set(imported(ast.parse(source)))


@pytest.mark.parametrize("path", NODES, ids=name_in_tree)
def test_nodes_import_the_library_relatively_and_not_at_import(path):
    tree = of_file(path)
    assert not [name for name in imported(tree) if HEAVY.match(name)]
    assert not [name for name in imported_at_import(tree) if name.startswith("..")]
    assert all(name.startswith("..ctsr") for name in imported(tree) if name.startswith(".."))


@pytest.mark.parametrize("path", NODES, ids=name_in_tree)
def test_one_file_touches_the_hosts_memory_management(path):
    names = [name for name in imported(of_file(path)) if OF_THE_HOST.match(name)]
    memory = [name for name in names if re.match(r"comfy(\.|$)", name)]
    assert bool(memory) is (path.name == MANAGES_MEMORY)
    if path.name in HOSTLESS:
        assert not names


# --------------------------------------------------------------------------------------------------------- training

TRAINING = sorted(path for path in (ROOT / "training").rglob("*.py") if path.name != "__init__.py")
ROOMS_BELOW = {
    "research": {"stages", "losses", "model", "data", "engine"},
    "stages": {"losses", "model", "data", "engine"},
    "losses": {"model", "data", "engine"},
    "model": {"data", "engine"},
    "data": {"engine"},
    "engine": set[str](),
}
"""What each room of `training/` may import beside itself; `training` imports `ctsr` and is imported by nobody."""


def modules_of_training() -> dict[str, set[str]]:
    """Modules of `training` by full name, with those that each of them imports."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in TRAINING}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        statements = [node for node in ast.walk(of_file(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
        texts = {text for statement in statements for text in imported(statement)}
        members = [(x.module, alias.name) for x in statements if isinstance(x, ast.ImportFrom) for alias in x.names]
        found[name] = (texts | {f"{module}.{member}" for module, member in members}) & names.keys()
    return found


@pytest.mark.parametrize("path", TRAINING, ids=name_in_tree)
def test_training_imports_go_down_and_stand_at_the_top(path):
    own = path.relative_to(ROOT / "training").parts[0]
    tree = of_file(path)
    rooms = {name.split(".")[1] for name in imported(tree) if name.startswith("training.")}
    assert rooms <= ROOMS_BELOW[own] | {own}
    assert not [name for name in set(imported(tree)) - imported_at_import(tree) if name.startswith("training")]
    assert not [name for name in imported(tree) if OF_THE_HOST.match(name) or name.split(".")[0] == "nodes"]


def test_no_modules_of_training_import_each_other_in_a_circle():
    left = modules_of_training()
    while leaves := [name for name, wanted in left.items() if not wanted & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, "a circle among these"


# --------------------------------------------------------------------------------------------------- registry's rules

RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
"""As plain names: `model.eval()` and `re.compile` are other things."""
STARTS_PROGRAMS = re.compile(r"os\.(system|popen|startfile|fork\w*|exec\w*|spawn\w*|posix_spawn\w*)$")
DOWNLOADS_OR_STARTS = re.compile(
    r"(subprocess|pty|urllib|urllib3|http|ftplib|socket|requests|httpx|aiohttp|wget|gdown|pip|ensurepip)(\.|$)"
)


def forbidden(tree: ast.Module) -> list[str]:
    """What a pack in the registry may not do: run text as code, start programs, install, download."""
    found = [name for name in imported(tree) if DOWNLOADS_OR_STARTS.match(name) or STARTS_PROGRAMS.match(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in RUNS_TEXT:
            found.append(node.id)
        elif isinstance(node, ast.Attribute) and re.match(r"builtins\.|os\.", text := ast.unparse(node)):
            found += [text] if text.startswith("builtins.") or STARTS_PROGRAMS.match(text) else []
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "builtins"):
            found += [x.name for x in node.names if x.name in RUNS_TEXT or STARTS_PROGRAMS.match(f"os.{x.name}")]
    return found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""eval(x), os.system, import subprocess."""\nmodel.eval()\nre.compile("x")\nos.replace(a, b)', 0),
        ("eval('1')", 1),
        ("f = exec", 1),
        ("import builtins\nbuiltins.exec('x')", 1),
        ("import os\nos.system('x')", 1),
        ("from os import popen", 1),
        ("def f():\n    import urllib.request", 1),
        ("from subprocess import run", 1),
        ("importlib.import_module('pip')", 1),
    ],
)
def test_the_search_sees_what_is_forbidden(source, count):
    assert len(forbidden(ast.parse(source))) == count


@pytest.mark.parametrize("path", [ROOT / "__init__.py", *NODES, *LIBRARY], ids=name_in_tree)
def test_nothing_runs_text_starts_programs_or_downloads(path):
    assert not forbidden(of_file(path))


# ------------------------------------------------------------------------------------------------------------ wheel


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
WITHOUT_HIDDEN = """
import json, sys

HIDDEN = set(sys.argv[1].split(","))


class Without:
    '''A finder of sys.meta_path that does not find what is hidden: as if it were not installed.'''

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
MINI = (
    WITHOUT_HIDDEN
    + """
sockets = []


def refuse_sockets(event, args):
    if event in ("socket.__new__", "socket.connect", "socket.getaddrinfo"):
        sockets.append(event)
        raise OSError(event + " in a test without a network")


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
)


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


# --------------------------------------------------------------------------------------------------- the node path

LACKING = (*HIDDEN, "typer", "rich", "cv2", "scipy", "skimage", "matplotlib", "pyiqa")
"""What the nodes do without: extras of this project, or of its command line alone."""
BROUGHT_BY_A_HOST = {"torch", "numpy", "PIL", "einops", "safetensors", "psutil", "typing_extensions"}
NODE_PATH = (
    WITHOUT_HIDDEN
    + """
import importlib, importlib.util

name, root, wanted = "node path", sys.argv[2], json.loads(sys.argv[3])
spec = importlib.util.spec_from_file_location(name, root + "/__init__.py", submodule_search_locations=[root])
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
for module, names in wanted.items():
    imported = importlib.import_module(name + "." + module)
    for one in names:
        hasattr(imported, one) or importlib.import_module(f"{name}.{module}.{one}")

import torch

load_pipeline = sys.modules[name + ".ctsr.load"].load_pipeline
picture = load_pipeline("mini")(torch.rand(1, 3, 16, 16), output_type="pt")
loaded = {key: module.__file__ for key, module in sys.modules.items() if key.startswith(name + ".ctsr")}
print(json.dumps({
    "size": list(picture.images.shape),
    "hidden": sorted(HIDDEN & {key.split(".")[0] for key in sys.modules}),
    "files": sorted(loaded.values()),
}))
"""
)


def wanted_of_the_library() -> dict[str, list[str]]:
    """Names that the nodes import from each module of the library, also those for types."""
    wanted: dict[str, list[str]] = {}
    for node in (node for path in NODES for node in ast.walk(of_file(path))):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            wanted.setdefault(str(node.module), []).extend(alias.name for alias in node.names)
    return wanted


def test_what_the_nodes_use_needs_no_more_than_a_host_and_its_requirements():
    wanted = wanted_of_the_library()
    assert {"ctsr.images.strip", "ctsr.load", "ctsr.models", "ctsr.pipeline"} <= wanted.keys()
    command = [sys.executable, "-c", NODE_PATH, ",".join(LACKING), str(ROOT), json.dumps(wanted)]
    result = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen["size"] == [1, 3, 64, 64]
    assert seen["hidden"] == []
    files = [Path(file) for file in seen["files"]]
    assert ROOT / "ctsr/images/strip.py" in files
    assert not [file for file in files if ROOT / "ctsr/app" in file.parents], "the command line is no library"
    names = {name.split(".")[0] for file in files for name in imported_at_import(of_file(file)) if name[0] != "."}
    outside = names - sys.stdlib_module_names - BROUGHT_BY_A_HOST
    assert outside == {re.split(r"\W", line)[0] for line in requirements()} - {"transformers"}


def requirements() -> list[str]:
    """What ComfyUI's manager installs."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_requirements_move_nothing_that_a_host_has():
    """pip settles them in order: the host's transformers stays, then comes the newest diffusers that goes with it."""
    first, *others = requirements()
    assert first == "transformers"
    assert [line for line in others if re.search(r"[<=~!]=?(?!=)", line.replace(">=", ""))] == []
