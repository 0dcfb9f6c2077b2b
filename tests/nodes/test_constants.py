"""What the nodes name without importing the library, so that the host starts quickly, is what the library has."""

import ast
from pathlib import Path
from typing import Any, get_args

from ctsr.images.color_fix import ColorFix
from ctsr.images.tensors import MAX_SIDE
from ctsr.precision import Precision

ROOT = Path(__file__).resolve().parents[2]


def constant(file: str, name: str) -> Any:
    """A constant of a file that only a host can import."""
    for node in ast.parse((ROOT / "nodes" / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise AssertionError(f"nodes/{file} has no {name}")


def test_choices_are_the_librarys() -> None:
    assert constant("inputs.py", "COLOR_FIXES") == [*get_args(ColorFix)]
    assert constant("host.py", "PRECISIONS") == [*get_args(Precision)]


def test_the_largest_side_is_the_librarys() -> None:
    assert constant("target.py", "LARGEST_SIDE") == MAX_SIDE
