"""The loop: samples by number, resuming to the bit, atomic checkpoints."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from training.loop import Run, Sample, averaged, fit, rate, save_checkpoint, update


def make(index: int) -> Sample:
    generator = torch.Generator().manual_seed(index)
    return {"x": torch.randn(3, generator=generator)}


def train(run: Run, stop_at: int | None = None) -> tuple[list[float], nn.Module]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    average = averaged(model, 0.9)
    optimizer = torch.optim.AdamW(model.parameters())
    losses: list[float] = []

    def step_of(step: int, batch: Sample) -> dict[str, float]:
        loss = (model(batch["x"]) - 1).square().mean()
        update(optimizer, loss, rate(step, 12, 1e-2, warm_up=3))
        average.update_parameters(model)
        losses.append(loss.item())
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": loss.item()}

    parts = {"model": model, "average": average, "optimizer": optimizer}
    finished = fit(run, make, step_of, parts, dict)
    assert finished is (stop_at is None)
    return losses, average.module


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, model = train(Run(tmp_path / "whole", 12, batch=2, workers=0))
    first, _ = train(Run(tmp_path / "parts", 12, batch=2, workers=0), stop_at=4)
    rest, resumed = train(Run(tmp_path / "parts", 12, batch=2, workers=0))
    assert len(first) == 5
    assert first + rest == whole
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed.parameters(), strict=True))


def test_workers_make_the_same_samples(tmp_path: Path) -> None:
    assert train(Run(tmp_path / "a", 4, batch=2, workers=0))[0] == train(Run(tmp_path / "b", 4, batch=2, workers=1))[0]


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Broken:
        def state_dict(self) -> dict[str, object]:
            raise RuntimeError("no room")

        def load_state_dict(self, state_dict: dict[str, object], /) -> None: ...

    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, 3, {})
    with pytest.raises(RuntimeError):
        save_checkpoint(path, 4, {"broken": Broken()})
    assert torch.load(path, weights_only=True) == {"step": 3}


def test_the_rate_warms_up_and_falls() -> None:
    rates = [rate(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == 0.01
    assert max(rates) == rates[100] == 1
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)
