"""Processes train as one with their whole batch does. Run as a script, this file is one of the processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ctsr import CTSRPipeline
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.data.shard_writer import write
from training.engine.run import Run
from training.losses import realism as realism_terms
from training.losses.realism import Realism
from training.losses.score_networks import ScoreNetworks
from training.losses.vsd import VSD
from training.stages import osediff, stage

TURNS = ("generator", "regulariser", "discriminator")  # in the order of their optimizers' steps

Gradients = list[list[Tensor]]


@dataclass(frozen=True)
class Case:
    """What one run is of; `batch` of one process."""

    out: Path
    photos: Path
    start: Path
    prior: Path
    batch: int
    steps: int = 3
    accumulation: int = 1
    shards: str | None = None

    @property
    def recipe(self) -> osediff.Recipe:
        """All three turns, fp32, gradients never clipped."""
        run = Run(
            self.out,
            self.steps,
            batch=self.batch,
            accumulation=self.accumulation,
            precision="no",
            warm_up=0,
            max_norm=1e9,
            workers=0,
            validate_every=100,
        )
        adversarial = replace(osediff.MINI.realism.adversarial, delay=0)
        return replace(
            osediff.MINI,
            data=Data(self.photos, shards=self.shards, pairs=Pairs(crop=32), crops=1),
            run=run,
            start=str(self.start),
            prior=self.prior,
            realism=Realism(VSD(weight=1.0, guidance=1.0, moved=True), adversarial),
        )


def grown_apart(scores: ScoreNetworks) -> ScoreNetworks:
    """A regulariser that is not its prior any more: VSD would be zero."""
    with torch.no_grad():
        for parameter in scores.network.parameters():
            parameter.mul_(1.1)
    return scores


def train(case: Case) -> Gradients:
    """Runs the stage; the gradients of every turn of the first step, as its optimizer finds them."""
    found: Gradients = []

    def note(optimizer: torch.optim.Optimizer, args: Any, options: Any) -> None:
        if len(found) < len(TURNS):
            found.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    handle, open_them = register_optimizer_step_pre_hook(note), realism_terms.open_prior
    realism_terms.open_prior = lambda recipe: grown_apart(open_them(recipe))
    try:
        stage.train(osediff.build, case.recipe)
    finally:
        realism_terms.open_prior = open_them
        handle.remove()
    return found


def weights(out: Path) -> dict[str, Tensor]:
    """Everything that is trained, by turn and name, as it is at the end."""
    modules = torch.load(out / "checkpoint.pt", weights_only=True)["modules"]
    return {f"{turn}/{name}": tensor for turn, state in modules.items() for name, tensor in state.items()}


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())


def calm(pipeline: CTSRPipeline, path: Path) -> Path:
    """As a file, its blocks near the identity, as new ones are: random ones would magnify rounding."""
    with torch.no_grad():
        for model in (pipeline.vae, pipeline.unet):
            for name, parameter in model.named_parameters():
                if name.split(".")[-2] in ("conv2", "project", "mix_out"):
                    parameter.mul_(0.1)
    pipeline.save_single_file(path, torch.float32)
    return path


@pytest.fixture
def case(
    photos: Path,
    make_mini: Callable[..., CTSRPipeline],
    make_prior: Callable[..., CTSRPipeline],
    tmp_path: Path,
) -> Case:
    start, prior = calm(make_mini(), tmp_path / "start.safetensors"), calm(make_prior(), tmp_path / "prior.safetensors")
    return Case(tmp_path / "whole", photos, start, prior, batch=4)


def check(found: Gradients, expected: Gradients) -> None:
    """Equal for every turn but for rounding, which is largest in tensors whose gradient nearly cancels."""
    for turn, ours, theirs in zip(TURNS, found, expected, strict=True):
        assert distance(torch.cat([g.flatten() for g in ours]), torch.cat([g.flatten() for g in theirs])) < 1e-5, turn
        assert max(distance(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-4, turn


def start_all(
    start_processes: Callable[..., list[subprocess.Popen[bytes]]], count: int, case: Case, *shards: object
) -> None:
    """Runs `main` in so many processes."""
    words = [*map(str, (case.batch, case.out, case.photos, case.start, case.prior, *shards))]
    processes = start_processes(__file__, *([words] * count))
    said = [process.communicate(timeout=900)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * count, "\n".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one_with_the_whole_batch(
    count: int, case: Case, tmp_path: Path, start_processes: Callable[..., list[subprocess.Popen[bytes]]]
) -> None:
    parts = replace(case, out=tmp_path / "parts", batch=case.batch // count)
    start_all(start_processes, count, parts)
    expected, found = train(case), torch.load(parts.out / "gradients.pt", weights_only=True)
    check(found, expected)
    start = CTSRPipeline.from_single_file(case.start, torch_dtype=torch.float32).unet.state_dict()
    one, several = weights(case.out), weights(parts.out)
    assert one.keys() == several.keys()
    for name, tensor in one.items():
        # By the tensor: AdamW moves a weight whose gradient is rounding noise by a whole step, either way.
        assert distance(several[name], tensor) < 1e-3, name
    unet = {name.removeprefix("generator/model.unet."): tensor for name, tensor in one.items() if "model.unet." in name}
    assert min(float((tensor - start[name]).abs().max()) for name, tensor in unet.items()) > 1e-4


@pytest.mark.slow
def test_two_processes_share_the_shards(
    case: Case, tmp_path: Path, start_processes: Callable[..., list[subprocess.Popen[bytes]]]
) -> None:
    write(case.photos, tmp_path / "shards", per_shard=1)
    sharded = replace(case, out=tmp_path / "sharded", batch=1)
    start_all(start_processes, 2, sharded, tmp_path / "shards" / "*.tar")
    latest = torch.load(sharded.out / "checkpoint.pt", weights_only=True)["latest_shards"]
    assert latest.keys() == {0, 1}
    assert [k % 2 for k in latest.values()] == [0, 1]
    assert max(latest.values()) > 1


def test_two_accumulated_batches_have_the_gradients_of_one_of_twice_the_size(case: Case, tmp_path: Path) -> None:
    whole = train(replace(case, batch=2, steps=1))
    halves = train(replace(case, out=tmp_path / "halves", batch=1, accumulation=2, steps=1))
    check(halves, whole)


def main(batch: str, out: str, photos: str, start: str, prior: str, shards: str | None = None) -> None:
    """One of the processes."""
    case = Case(Path(out), Path(photos), Path(start), Path(prior), batch=int(batch), shards=shards)
    found = train(case)
    if os.environ["RANK"] == "0":
        torch.save(found, case.out / "gradients.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
