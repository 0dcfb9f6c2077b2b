"""A stage that was killed, or stopped, goes on to the bit as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.run import Run
from training.engine.sources import Sample
from training.losses.realism import Realism
from training.losses.vsd import VSD
from training.stages import osediff
from training.stages.osediff import Generator
from training.stages.stage import train

ROOT = Path(__file__).parents[3]
STEPS, COMPARED = 60, 20

Losses = dict[str, dict[int, float]]


def event_files(out: Path) -> set[Path]:
    return set((out / "tensorboard").glob("events.*"))


def losses(files: set[Path]) -> Losses:
    """By name and step, fp32."""
    found: Losses = {}
    for file in sorted(files):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return found


def same_weights(*outs: Path) -> bool:
    """Whether the files of two runs hold the same bits."""
    a, b = (load_file(out / "model.safetensors") for out in outs)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def start(out: Path, photos: Path, weights: Path) -> subprocess.Popen[bytes]:
    """The stage as its users start it, in a process group of its own, on one thread."""
    words = f"mini --data.photos {photos} --data.pairs.crop 64 --start {weights} --run.out {out} --run.steps {STEPS}"
    words += " --run.batch 1 --run.save-minutes 0 --run.log-every 1 --run.validate-every 1000 --run.warm-up 5"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "training.stages.fidelity", *words.split()],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said.decode()


def kill_after(process: subprocess.Popen[bytes], checkpoint: Path, step: int) -> None:
    """SIGKILL as soon as the checkpoint is of `step` or later."""
    while process.poll() is None:
        if checkpoint.exists() and torch.load(checkpoint, weights_only=True)["step"] >= step:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            break
        time.sleep(0.02)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(photos: Path, tiny_mini_file: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    checkpoint = parts / "checkpoint.pt"
    unbroken, killed = (start(out, photos, tiny_mini_file) for out in (whole, parts))
    kill_after(killed, checkpoint, step=10)
    finish(unbroken)
    before = event_files(parts)
    at = torch.load(checkpoint, weights_only=True)["step"]
    assert 10 <= at <= STEPS - COMPARED
    checkpoint.with_suffix(".partial").write_bytes(checkpoint.read_bytes()[:1000])  # as if killed while it saved
    finish(start(parts, photos, tiny_mini_file))
    expected, found = losses(event_files(whole)), losses(event_files(parts) - before)
    assert {"generator/loss", "generator/l1", "generator/l2", "generator/latents"} <= found.keys() == expected.keys()
    for name, row in found.items():
        assert row == {step: value for step, value in expected[name].items() if step > at}
        assert name.startswith("held back") or len(row) == STEPS - at >= COMPARED
    assert same_weights(whole, parts)
    assert not checkpoint.with_suffix(".partial").exists()


def test_three_turns_stopped_by_sigterm_go_on_as_if_they_had_not_been(
    photos: Path,
    tiny_mini_file: Path,
    tiny_prior_file: Path,
    make_run: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adversarial = replace(osediff.MINI.realism.adversarial, delay=2)
    recipe = replace(
        osediff.MINI,
        data=Data(photos, pairs=Pairs(crop=64)),
        run=make_run(tmp_path / "whole", steps=8, accumulation=2, warm_up=2, validate_every=100),
        start=str(tiny_mini_file),
        prior=tiny_prior_file,
        realism=Realism(VSD(weight=1.0, guidance=1.0), adversarial),
    )
    train(osediff.build, recipe)
    parts = replace(recipe, run=replace(recipe.run, out=tmp_path / "parts"))
    forward = Generator.forward

    def stop_in_the_fourth_step(self: Generator, batch: Sample) -> dict[str, torch.Tensor]:
        if int(batch["step"]) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "forward", stop_in_the_fourth_step)
        train(osediff.build, parts)
    assert torch.load(parts.run.out / "checkpoint.pt", weights_only=True)["step"] == 4
    assert not (parts.run.out / "model.safetensors").exists()
    train(osediff.build, parts)
    expected, found = (losses(event_files(out)) for out in (recipe.run.out, parts.run.out))
    assert {name.split("/")[0] for name in found} == {"generator", "regulariser", "discriminator", "held back"}
    assert found == expected
    assert all(sorted(row) == list(range(1, 9)) for name, row in found.items() if not name.startswith("held back"))
    assert same_weights(recipe.run.out, parts.run.out)
