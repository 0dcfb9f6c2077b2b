"""One picture from a cold start: `ctsr upscale` of two checkouts in turn, in this environment.

python -m benchmarks.cold EARLIER [--picture FILE] [--repeat 7]
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parents[1]


def seconds(checkout: Path, picture: Path, out: Path) -> float:
    """Of one command, from nothing to the file."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, name = project["scripts"]["ctsr"].split(":")
    start = f"import sys; sys.path.insert(0, {str(checkout)!r}); from {module} import {name}; {name}()"
    out.unlink(missing_ok=True)
    before = time.perf_counter()
    command = [sys.executable, "-c", start, "upscale", str(picture), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=out.parent)
    return time.perf_counter() - before


def main(
    earlier: Annotated[Path, typer.Argument(help="a checkout of an earlier commit")],
    picture: Path = HERE / "examples/images/kudu.jpg",
    repeat: int = 7,
) -> None:
    """Medians; the first command of each, which fills the disk's cache, is left out."""
    both = {"earlier": earlier.resolve(), "now": HERE}
    with tempfile.TemporaryDirectory() as folder:
        runs = [{n: seconds(c, picture, Path(folder) / "x.png") for n, c in both.items()} for _ in range(repeat + 1)]
    for name in both:
        print(f"{name}: {statistics.median(run[name] for run in runs[1:]):.2f} s, median of {repeat}")


if __name__ == "__main__":
    typer.run(main)
