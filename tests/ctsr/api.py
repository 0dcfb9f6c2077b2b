"""docs/api.md: what `ctsr` exports, made of signatures and docstrings by `python -m tests.ctsr.api`."""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ctsr

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
INTRODUCTION = """# Python API

What `from ctsr import ...` gives. `help(NAME)` tells the arguments, shapes and errors of each. Beside these,
`ctsr.load.load_pipeline(model)` opens "mini", a file or a folder.
"""
METHODS = (
    "mini",
    "from_single_file",
    "from_pretrained",
    "from_pipe",
    "save_single_file",
    "save_pretrained",
    "__call__",
)
METHODS += ("sweep", "encode", "endpoints", "blend", "decode", "at", "choose_t", "plan", "encode_prompt")
METHODS += ("enable_tiling", "enable_model_cpu_offload", "set_attention_backend", "compile", "load_lora_weights")
"""Of the pipeline; diffusers' own come beside them."""


def first_line(thing: object) -> str:
    """Of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def signature(function: Any) -> str:
    """Names of the arguments, with their defaults and without types."""
    parameters = [x.replace(annotation=x.empty) for x in inspect.signature(function).parameters.values()]
    plain = inspect.Signature([x for x in parameters if x.name not in ("self", "cls")])
    return re.sub(r"<[^>]*>", "...", str(plain))


def entries() -> Iterator[str]:
    """A line for each name, and below the pipeline those of its methods."""
    for name in ctsr.__all__:
        value = getattr(ctsr, name)
        if name == "FAMILIES":
            yield f"- `{name}`: the methods by name: {', '.join(value)}."
            continue
        is_error = isinstance(value, type) and issubclass(value, Exception)
        yield f"- `{name}{'' if is_error else signature(value)}`: {first_line(value)}"
        for method in METHODS if name == "CTSRPipeline" else ():
            function = getattr(value, method)
            called = "pipe" if method == "__call__" else f".{method}"
            yield f"  - `{called}{signature(function)}`: {first_line(function)}"


def page() -> str:
    """All of it."""
    return INTRODUCTION + "\n" + "\n".join(entries()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}\n")
