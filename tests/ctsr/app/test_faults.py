"""Runs that are killed, several at once, targets that vanish: nothing half-written counts, is lost or is done twice."""

from __future__ import annotations

import os
import random
import shutil
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctsr.images.settings import is_whole
from tests.ctsr.app.runs import start

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks processes")
SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".avif")
ROUNDS = [pytest.param(5), pytest.param(50, marks=pytest.mark.slow)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of fifteen small pictures in five formats."""
    (tmp_path / "in").mkdir()
    for index in range(15):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"in/{index}{SUFFIXES[index % 5]}")
    return tmp_path


def arguments(folder: Path, model: Path) -> list[object]:
    """Of a run over the pictures in `folder`."""
    return ["upscale", folder / "in", "-o", folder / "out", "--scale", 2, "--model", model, "--precision", "fp32"]


def results(folder: Path) -> dict[str, bytes]:
    """Everything in the folder of results, hidden or not."""
    return {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}


def finish(folder: Path, model: Path) -> str:
    """A run to its end; what it says."""
    process = start(arguments(folder, model), folder / "log")
    process.join(120)
    assert process.exitcode == 0, (folder / "log").read_text()
    return (folder / "log").read_text().splitlines()[0]


def wait_for(process: BaseProcess, folder: Path, count: int) -> None:
    """Until so many results are there, or the run has ended."""
    while process.is_alive() and len(list((folder / "out").glob("[0-9]*"))) < count:
        time.sleep(0.01)


@pytest.fixture
def expected(many: Path, tiny_mini_file: Path) -> dict[str, bytes]:
    """The results of an undisturbed run, which are then removed."""
    assert finish(many, tiny_mini_file) == "15 done, 0 skipped, 0 failed"
    whole = results(many)
    shutil.rmtree(many / "out")
    return whole


@pytest.mark.parametrize("rounds", ROUNDS)
def test_killed_at_random_moments(many: Path, tiny_mini_file: Path, expected: dict[str, bytes], rounds: int) -> None:
    """kill -9: what is there under its name is whole and right; the last run completes it and leaves nothing else."""
    moments, made = random.Random(0), dict[str, int]()
    for _ in range(rounds):
        process = start(arguments(many, tiny_mini_file), many / "log")
        wait_for(process, many, len(made) + moments.randint(0, 3))
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        for path in (many / "out").glob("[0-9]*"):
            assert path.read_bytes() == expected[path.name]
            assert is_whole(path)
            assert made.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "done twice"
        if len(made) == 15:
            shutil.rmtree(many / "out")
            made.clear()
    finish(many, tiny_mini_file)
    assert results(many) == expected


@pytest.mark.parametrize("runs", [2, 4])
def test_runs_side_by_side_share_the_work(
    many: Path, tiny_mini_file: Path, expected: dict[str, bytes], runs: int
) -> None:
    logs = [many / f"log{index}" for index in range(runs)]
    processes = [start(arguments(many, tiny_mini_file), log) for log in logs]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * runs
    done = [int(log.read_text().split(" done")[0]) for log in logs]
    assert sum(done) == 15, "each once"
    assert results(many) == expected


def test_a_run_takes_over_from_one_that_is_killed(many: Path, tiny_mini_file: Path, expected: dict[str, bytes]) -> None:
    first, second = (start(arguments(many, tiny_mini_file), many / f"log{index}") for index in range(2))
    wait_for(first, many, 3)
    first.kill()
    second.join(120)
    assert second.exitcode == 0
    assert {name: data for name, data in results(many).items() if name[0] != "."} == expected
    finish(many, tiny_mini_file)
    assert results(many) == expected


def test_a_folder_that_vanishes_is_made_again(many: Path, tiny_mini_file: Path, expected: dict[str, bytes]) -> None:
    process = start(arguments(many, tiny_mini_file), many / "log")
    wait_for(process, many, 3)
    while (many / "out").exists():
        shutil.rmtree(many / "out", ignore_errors=True)
    process.join(120)
    said = (many / "log").read_text()
    assert process.exitcode in (0, 1), said
    for line in said.splitlines():
        assert "Traceback" not in line
    there = {name: data for name, data in results(many).items() if name[0] != "."} if (many / "out").exists() else {}
    assert there.items() <= expected.items()
    finish(many, tiny_mini_file)
    assert results(many) == expected
