"""The shape of the code in figures: size, imports between rooms, lengths of functions, unused names, and hops.

    python benchmarks/house.py            one table for ctsr and training
    python benchmarks/house.py --long     and the longest functions and the names that no other file uses

A room is a file or folder at the top of a package. A hop is a call from one function of ours to the next, on the way
from the first name of a walk to the function of `ctsr.models.forward` that runs the network.
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ctsr import CTSRPipeline  # noqa: E402
from tests.test_architecture import ROOMS, dotted, neighbours  # noqa: E402
from training.model.one_step import OneStep  # noqa: E402

USERS = ("ctsr", "training", "nodes", "tests", "benchmarks")
LONG = "--long" in sys.argv[1:]


@dataclass(frozen=True)
class Package:
    """The parsed files of a package, by path."""

    name: str
    files: dict[Path, ast.Module]

    def walk(self) -> Iterator[ast.AST]:
        """Every node of every file."""
        for tree in self.files.values():
            yield from ast.walk(tree)


def parse(name: str) -> Package:
    """A folder below the root."""
    paths = sorted((ROOT / name).rglob("*.py"))
    return Package(name, {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths})


# ----------------------------------------------------------------------------------------------------------- functions


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function with its signature, without decorators and docstring."""
    docstring = function.body[0] if ast.get_docstring(function) is not None else None
    skipped = 0 if docstring is None else (docstring.end_lineno or 0) - docstring.lineno + 1
    return (function.end_lineno or 0) - function.lineno + 1 - skipped


def lengths(package: Package) -> list[tuple[int, str]]:
    """Lines and name of every function and method, the longest first; stubs of overloads are left out."""
    found = [
        (body_lines(node), f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
        for path, tree in package.files.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and not any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
    ]
    return sorted(found, reverse=True)


# --------------------------------------------------------------------------------------------------------------- names


def public_names(package: Package) -> dict[str, Path]:
    """Functions, classes and constants at the top of files, by name and file."""
    found: dict[str, Path] = {}
    for path, tree in package.files.items():
        for node in tree.body:
            targets: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                targets = [node.name]
            elif isinstance(node, ast.Assign):
                targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                targets = [node.target.id]
            found |= {f"{path.relative_to(ROOT)} {name}": path for name in targets if not name.startswith("_")}
    return found


def used_words(paths: list[Path]) -> dict[Path, set[str]]:
    """The words of every file."""
    return {path: set(re.findall(r"\w+", path.read_text(encoding="utf-8"))) for path in paths}


def used_in_no_other_file(package: Package) -> tuple[list[str], int]:
    """Public names that stand in no other file of the repository, tests included; and how many there are in all."""
    words = used_words([path for user in USERS for path in (ROOT / user).rglob("*.py")])
    count = Counter(word for own in words.values() for word in own)
    names = public_names(package)
    return [name for name in names if count[name.split()[-1]] == 1], len(names)


# --------------------------------------------------------------------------------------------------------------- rooms


def room(module: str) -> str:
    return module.split(".")[0]


def arrows() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Pairs of different rooms of ctsr of which the first imports the second, and those that go up."""
    found = {
        (room(dotted(path)), room(other))
        for path in (ROOT / "ctsr").rglob("*.py")
        for other in neighbours(path, ast.parse(path.read_text(encoding="utf-8")))
    }
    found = {(a, b) for a, b in found if a != b and b != "__init__"}  # the version
    order = list(ROOMS)
    return found, {(a, b) for a, b in found if order.index(b) > order.index(a)}


def circles() -> int:
    """Files of ctsr that lie on a circle of imports."""
    graph = {dotted(path).removesuffix(".__init__"): path for path in (ROOT / "ctsr").rglob("*.py")}
    needs = {name: neighbours(path, ast.parse(path.read_text(encoding="utf-8"))) for name, path in graph.items()}
    while leaves := {name for name, others in needs.items() if not others & needs.keys() - {name}}:
        needs = {name: others for name, others in needs.items() if name not in leaves}
    return len(needs)


# --------------------------------------------------------------------------------------------------------------- walks


class ReachedError(Exception):
    """A network's forward was called."""


def way_to(network: torch.nn.Module, method: str, start: Callable[[], object]) -> list[str]:
    """Our own functions on the stack when a network's method is called, up to the first of models/forward.py."""
    found: list[str] = []

    def look(*_: object, **__: object) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            ours = any(path.is_relative_to(ROOT / name) for name in ("ctsr", "training"))
            if ours and not frame.f_code.co_name.endswith("comp>"):
                found.insert(0, f"{path.relative_to(ROOT)}:{frame.f_code.co_name}")
            frame = frame.f_back
        raise ReachedError

    setattr(network, method, look)
    try:
        start()
    except ReachedError:
        pass
    finally:
        delattr(network, method)
    return found[: 1 + next(index for index, step in enumerate(found) if step.startswith("ctsr/models/forward.py"))]


def walks() -> Iterator[tuple[str, list[str]]]:
    """What is called from the first function of each walk to the built-in model's networks."""
    pipeline = CTSRPipeline.mini(torch.float32)
    unet: Any = pipeline.unet
    vae: Any = pipeline.vae
    picture = torch.rand(1, 3, 16, 16)
    encoded = pipeline.encode(picture, 64, 64)
    model = OneStep(pipeline)
    yield "__call__ to UNet", way_to(unet, "forward", lambda: pipeline(picture))
    yield "__call__ to decoder", way_to(vae, "decode", lambda: pipeline(picture))
    yield "endpoints (node) to UNet", way_to(unet, "forward", lambda: pipeline.endpoints(encoded.latents))
    yield "decode (node) to decoder", way_to(vae, "decode", lambda: pipeline.decode(encoded.latents[0]))
    yield "training's OneStep to UNet", way_to(unet, "forward", lambda: model(picture))


# --------------------------------------------------------------------------------------------------------------- table


def figures(package: Package) -> Iterator[tuple[str, str]]:
    """Rows of the table for one package."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in package.files)
    yield "files", str(len(package.files))
    yield "lines", str(text.count("\n") + 1)
    found = lengths(package)
    values = sorted(lines for lines, _ in found)
    yield "functions", str(len(values))
    yield "their lines: median, p90, longest", f"{median(values):g}, {values[int(0.9 * len(values))]}, {values[-1]}"
    yield "functions over 50 lines", str(sum(lines > 50 for lines in values))
    unused, names = used_in_no_other_file(package)
    yield "public names used in no other file", f"{len(unused)} of {names}"
    yield "cast(", str(len(re.findall(r"\bcast\(", text)))
    yield "Any", str(sum(isinstance(node, ast.Name) and node.id == "Any" for node in package.walk()))
    yield "pyright comments", str(text.count("# pyright:"))


def main() -> None:
    packages = [parse("ctsr"), parse("training")]
    columns = [dict(figures(package)) for package in packages]
    print(f"{'':38}{'ctsr':>18}{'training':>18}")
    for name in columns[0]:
        print(f"{name:38}{columns[0][name]:>18}{columns[1][name]:>18}")
    found, upward = arrows()
    rows = {"rooms": len(ROOMS), "arrows between rooms": len(found), "upward": len(upward), "circles": circles()}
    for name, value in rows.items():
        print(f"{name:38}{value:>18}")
    for name, way in walks():
        files = len({step.split(":")[0] for step in way})
        print(f"{name:38}{f'{len(way) - 1} hops, {files} files':>18}")
        if LONG:
            print(*(f"    {step}" for step in way), sep="\n")
    for package in packages if LONG else ():
        print(f"\n{package.name}: longest functions", *(f"{n:5} {name}" for n, name in lengths(package)[:15]), sep="\n")
        print(f"{package.name}: public names used in no other file", *used_in_no_other_file(package)[0], sep="\n")


if __name__ == "__main__":
    main()
