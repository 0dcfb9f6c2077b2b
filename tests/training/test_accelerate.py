"""The configurations in training/accelerate, started by accelerate's own launcher; on the CPU, and fewer processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests.training.conftest import free_port

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "training" / "accelerate").glob("*.yaml"))


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`launch(config, options, ...)` of a script in which each process says its number and how many there are."""
    script = tmp_path / "share.py"
    script.write_text("from training.engine.run import own_share\nprint(*own_share(), flush=True)\n")

    def start(config: str, *options: str) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        return subprocess.Popen(
            [*launcher, "--config_file", f"training/accelerate/{config}.yaml", *options, str(script)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def shares(process: subprocess.Popen[str]) -> list[str]:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return sorted(out.splitlines())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_the_file(path: Path) -> None:
    config = load_config_from_file(str(path))
    expected = {"one_gpu": (1, 1), "eight_gpus": (1, 8), "two_machines": (2, 16)}
    assert (config.num_machines, config.num_processes) == expected[path.stem]
    assert config.mixed_precision == "bf16"


def test_one_process(launch: Callable[..., subprocess.Popen[str]]) -> None:
    assert shares(launch("one_gpu")) == ["0 1"]


def test_several_processes_of_one_machine(launch: Callable[..., subprocess.Popen[str]]) -> None:
    assert shares(launch("eight_gpus", "--num_processes", "2")) == ["0 2", "1 2"]


def test_two_machines_are_one_run(launch: Callable[..., subprocess.Popen[str]]) -> None:
    where = ("--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()))
    machines = [launch("two_machines", *where, "--machine_rank", rank) for rank in "01"]
    assert [shares(machine) for machine in machines] == [["0 2"], ["1 2"]]
