"""`import ctsr`: public names at their first use, and a command line that helps without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import ctsr

HEAVY = ("torch", "diffusers", "numpy", "PIL", "cv2")
RUN = """
import json, sys
from ctsr.app.cli import app

code = None
try:
    app(sys.argv[1:], prog_name="ctsr")
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code, "modules": sorted({name.split(".")[0] for name in sys.modules})}), file=sys.stderr)
"""


def in_new_process(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python and return what it says."""
    return subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(("--help",), "upscale"), (("upscale", "--help"), "--scale"), (("--version",), ctsr.__version__)],
    ids=" ".join,
)
def test_help_does_without_torch(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    result = in_new_process("-c", RUN, *arguments, cwd=tmp_path)
    assert says in result.stdout
    seen = json.loads(result.stderr)
    assert seen["code"] == 0
    assert not {*HEAVY} & {*seen["modules"]}


def test_python_m_ctsr_is_the_command_line(tmp_path: Path) -> None:
    result = in_new_process("-m", "ctsr", "--version", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"ctsr {ctsr.__version__}\n")


def test_every_public_name_is_there_and_listed() -> None:
    assert {*ctsr.__all__} <= {*dir(ctsr)}
    assert all(getattr(ctsr, name) is not None for name in ctsr.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = ctsr.Nothing  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]


def test_the_pipeline_loads_every_class_that_saved_folders_name(tmp_path: Path) -> None:
    code = "import sys, ctsr.pipeline; print(*sys.modules)"
    loaded = in_new_process("-c", code, cwd=tmp_path).stdout.split()
    homes = {getattr(ctsr, name).__module__ for name in ctsr.__all__ if hasattr(getattr(ctsr, name), "from_pretrained")}
    assert len(homes) == 8  # five models and the pipeline
    assert homes <= {*loaded}
