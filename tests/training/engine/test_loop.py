"""The loop: turns, rates, averaged weights, accumulation, atomic checkpoints, resuming to the bit."""

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from training.engine.checkpoint import State, trained_state
from training.engine.loop import Report, autocast_precision, fit, learning_rate
from training.engine.run import Run
from training.engine.sources import ByNumber, Sample
from training.engine.turn import Turn

SOURCE = ByNumber(lambda index: {"x": torch.randn(3, generator=torch.Generator().manual_seed(index))})


class First(nn.Module):
    """Says what it saw, leaves a guess for the turn after it, and can ask for a stop."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.layer = nn.Linear(3, 1)
        self.stop_at = stop_at
        self.seen: list[list[int]] = []
        self.losses: list[float] = []

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        self.seen.append(batch["index"].tolist())
        guess = self.layer(self.frozen(batch["x"]))
        loss = (guess - 1).square().mean()
        self.losses.append(loss.item())
        if self.stop_at == int(batch["step"]):
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": loss, "size": guess.abs().mean(), "guess": guess}


class Second(nn.Module):
    """Follows the first turn's guess."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.losses: list[float] = []

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        assert not batch["guess"].requires_grad
        self.calls += 1
        loss = (self.layer(batch["x"]) - batch["guess"]).square().mean()
        self.losses.append(loss.item())
        return {"loss": loss}


@dataclass
class Trained:
    finished: bool
    first: First
    second: Second
    validated: list[Tensor] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [*self.first.losses, *self.second.losses]

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach() for module in (self.first, self.second) for p in module.parameters()]


def train(run: Run, stop_at: int | None = None, peak: float = 1e-2) -> Trained:
    first, second = First(stop_at), Second()
    trained = Trained(False, first, second)

    def validate() -> Report:
        trained.validated.append(first.layer.weight.detach().clone())
        return Report({"size": float(first.layer.weight.norm())}, {"picture": torch.zeros(1, 3, 4, 4)})

    trained.finished = fit(run, SOURCE, [Turn("first", first, peak), Turn("second", second, peak / 2)], validate)
    return trained


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(
        tmp_path / "run", 12, batch=2, workers=0, precision="no", warm_up=3, ema=0.5, log_every=4, validate_every=100
    )


def scalars(out: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(run: Run, tmp_path: Path, accumulation: int) -> None:
    run = replace(run, accumulation=accumulation)
    whole, parts = train(replace(run, out=tmp_path / "whole")), replace(run, out=tmp_path / "parts")
    before, after = train(parts, stop_at=4), train(parts)
    assert (whole.finished, before.finished, after.finished) == (True, False, True)
    assert len(before.first.losses) == 5 * accumulation
    assert before.first.losses + after.first.losses == whole.first.losses
    assert before.second.losses + after.second.losses == whole.second.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, after.weights, strict=True))
    assert torch.equal(after.second.calls, whole.second.calls)


@pytest.mark.parametrize(
    ("asked", "hardware", "frozen", "expected"),
    [
        ("auto", True, torch.float32, "bf16"),
        ("auto", False, torch.float32, "no"),
        ("auto", False, torch.bfloat16, "bf16"),
        ("bf16", False, torch.float32, "bf16"),
        ("no", True, torch.float32, "no"),
    ],
)
def test_bf16_is_computed_where_the_hardware_has_it(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    asked: Literal["auto", "no", "bf16"],
    hardware: bool,
    frozen: torch.dtype,
    expected: str,
) -> None:
    monkeypatch.setattr("ctsr.precision.cpu_has_bf16", lambda: hardware)
    monkeypatch.setattr("training.engine.loop.own_device", lambda: torch.device("cpu"))
    first = First()
    first.base = nn.Linear(2, 2).to(frozen).requires_grad_(False)
    assert autocast_precision(replace(run, precision=asked), [Turn("first", first, 1e-2)]) == expected


def test_a_base_in_half_precision_needs_autocast(run: Run) -> None:
    first = First()
    first.base = nn.Linear(2, 2).to(torch.bfloat16).requires_grad_(False)
    with pytest.raises(ValueError, match="precision bf16"):
        autocast_precision(run, [Turn("first", first, 1e-2)])


def test_after_the_run_sigterm_means_what_it_meant_before(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    train(run, stop_at=2)
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setattr(First, "forward", None)
    with pytest.raises(TypeError):
        train(run)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_that_is_done_is_not_repeated(run: Run) -> None:
    whole, again = train(run), train(run)
    assert again.finished
    assert again.losses == []
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, again.weights, strict=True))


def test_what_is_logged_after_a_stop_is_the_mean_of_what_was_seen(run: Run) -> None:
    train(run, stop_at=4)
    after = train(run)
    row = scalars(run.out)["first/loss"]
    assert sorted(row) == [4, 8, 12]
    assert row[8] == pytest.approx(sum(after.first.losses[:3]) / 3)
    assert row[12] == pytest.approx(sum(after.first.losses[3:]) / 4)


def test_logs_name_the_turn_and_the_scores_and_leave_tensors_out(run: Run) -> None:
    train(run)
    assert scalars(run.out).keys() == {"first/loss", "first/size", "second/loss", "held back/size"}


def test_a_failed_save_leaves_the_last_checkpoint(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    train(run, stop_at=2)
    path = run.out / "checkpoint.pt"
    before = path.read_bytes()

    def fail(state: object, partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError("no room")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no room"):
        train(run)
    assert path.read_bytes() == before
    monkeypatch.undo()
    assert path.with_suffix(".partial").read_bytes() == b"half"
    assert train(run).first.seen[0] == [6, 7]  # step 3
    assert not path.with_suffix(".partial").exists()


def test_a_checkpoint_of_other_turns_or_networks_is_refused(run: Run, tmp_path: Path) -> None:
    train(run, stop_at=2)
    with pytest.raises(ValueError, match="another recipe"):
        fit(run, SOURCE, [Turn("other", First(), 1e-2)], lambda: Report({}))
    thawed = First()
    thawed.frozen.requires_grad_(True)
    with pytest.raises(ValueError, match="another recipe"):
        fit(run, SOURCE, [Turn("first", thawed, 1e-2), Turn("second", Second(), 1e-2)], lambda: Report({}))


def test_a_checkpoint_keeps_what_is_trained_and_the_buffers() -> None:
    assert trained_state(First()).keys() == {"layer.weight", "layer.bias"}
    assert trained_state(Second()).keys() == {"layer.weight", "layer.bias", "calls"}


def test_the_held_back_are_scored_with_averaged_weights_and_training_goes_on_with_its_own(run: Run) -> None:
    often, seldom = train(replace(run, validate_every=4)), train(replace(run, out=run.out / "b"))
    assert (len(often.validated), len(seldom.validated)) == (3, 1)
    assert often.losses == seldom.losses
    assert torch.equal(often.validated[-1], seldom.validated[-1])
    assert torch.equal(often.validated[-1], often.first.layer.weight)  # in place at the end


def test_the_average_is_exponential(run: Run) -> None:
    weights: list[Tensor] = []

    class Watched(First):
        def forward(self, batch: Sample) -> dict[str, Tensor]:
            weights.append(self.layer.weight.detach().clone())
            return super().forward(batch)

    module = Watched()
    fit(run, SOURCE, [Turn("first", module, 1e-2)], lambda: Report({}))
    state = torch.load(run.out / "checkpoint.pt", weights_only=True)
    weights.append(state["modules"]["first"]["layer.weight"])
    expected = weights[1]
    for number, weight in enumerate(weights[2:], start=1):
        decay = min(0.5, (1 + number) / (10 + number))  # diffusers' own start
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(module.layer.weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_accumulated_batches_move_the_weights_as_one_of_twice_the_size(run: Run, tmp_path: Path) -> None:
    run = replace(run, steps=5, max_norm=0.1)
    whole = train(replace(run, out=tmp_path / "a", batch=2))
    halves = train(replace(run, out=tmp_path / "b", batch=1, accumulation=2))
    assert whole.first.seen == [[2 * n, 2 * n + 1] for n in range(5)]
    assert halves.first.seen == [[n] for n in range(10)]
    for a, b in zip(whole.weights, halves.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_loop_gives_every_group_its_rate(run: Run) -> None:
    first = First()
    seen: list[list[float]] = []
    groups = [{"params": [first.layer.weight]}, {"params": [first.layer.bias], "factor": 0.1}]
    turn = Turn("first", first, 1e-2, groups)

    class Watched(Turn):
        def optimizer(self) -> torch.optim.AdamW:
            optimizer = super().optimizer()
            optimizer.register_step_pre_hook(lambda o, *_: seen.append([group["lr"] for group in o.param_groups]))
            return optimizer

    fit(run, SOURCE, [Watched(turn.name, turn.module, turn.peak_rate, turn.groups)], lambda: Report({}))
    assert [row[0] for row in seen] == [learning_rate(step, run, 1e-2) for step in range(12)]
    assert all(small == pytest.approx(0.1 * large) for large, small in seen)


def test_gradients_are_clipped_turn_by_turn(run: Run) -> None:
    norms: dict[str, list[float]] = {"first": [], "second": []}

    class Watched(Turn):
        def optimizer(self) -> torch.optim.AdamW:
            optimizer = super().optimizer()
            optimizer.register_step_pre_hook(lambda *_: norms[self.name].append(self.norm()))
            return optimizer

        def norm(self) -> float:
            return float(torch.cat([p.grad.flatten() for p in self.parameters]).norm())

    turns = [Watched("first", First(), 1e-2), Watched("second", Second(), 1e-2)]
    fit(replace(run, max_norm=0.05), SOURCE, turns, lambda: Report({}))
    assert len(norms["first"]) == len(norms["second"]) == 12
    assert max(norms["first"] + norms["second"]) <= 0.05 * 1.001
    assert max(norms["first"]) > 0.04
    assert max(norms["second"]) > 0.04


class Sharded:
    """A source whose samples know their shard."""

    def __init__(self) -> None:
        self.asked: Mapping[int, int] = {}

    def batches(self, run: Run, start: int, latest_shards: Mapping[int, int], rank: int, world: int):
        self.asked = dict(latest_shards)
        yield from ({"index": torch.tensor([n]), "x": torch.ones(1, 3), "shard": torch.tensor([n])} for n in range(100))

    def on_device(self, batch: Sample, device: torch.device) -> Sample:
        return batch

    def note_shards(self, batch: Sample) -> Mapping[int, int]:
        return {0: int(batch["shard"].max())}


def test_the_place_in_the_shards_is_kept_and_no_longer_than_its_consumers(run: Run) -> None:
    turns = [Turn("first", First(), 1e-2), Turn("second", Second(), 1e-2)]
    assert fit(replace(run, steps=3), Sharded(), turns, lambda: Report({}))
    path = run.out / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    assert state["latest_shards"] == {0: 2}
    torch.save({**state, "latest_shards": {0: 2, 1: 7}}, path)  # as of a run with two consumers
    source = Sharded()
    assert fit(replace(run, steps=5), source, turns, lambda: Report({}))
    assert source.asked == {0: 2, 1: 7}
    assert torch.load(path, weights_only=True)["latest_shards"] == {0: 1}


def test_the_rate_warms_up_and_falls(run: Run) -> None:
    run = replace(run, steps=1000, warm_up=100)
    rates = [learning_rate(step, run, 2.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == rates[100] == 2
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[550] == pytest.approx(2 * (0.02 + 0.98 * 0.5))
    assert rates[-1] == pytest.approx(0.04, abs=1e-3)


def test_a_constant_rate_stays(run: Run) -> None:
    run = replace(run, warm_up=2, schedule="constant")
    assert [learning_rate(step, run, 1.0) for step in range(5)] == [0.5, 1, 1, 1, 1]
    assert learning_rate(0, replace(run, warm_up=0), 1.0) == 1


def test_a_missing_checkpoint_starts_at_zero(tmp_path: Path) -> None:
    from diffusers.training_utils import EMAModel

    module = First()
    state = State(
        [Turn("first", module, 1e-2)], [torch.optim.AdamW(module.parameters())], EMAModel([module.layer.bias])
    )
    assert state.load(tmp_path / "checkpoint.pt") == 0


@pytest.mark.parametrize("place", ["{folder}/store/run", "memory://bucket/{folder}/run/"])
def test_another_machine_goes_on_from_the_backup(tmp_path: Path, place: str) -> None:
    """To the bit; and a machine with a checkpoint of its own is not moved by an older copy."""
    backup = place.format(folder=tmp_path)
    run = Run(tmp_path / "whole", steps=6, batch=2, workers=0, warm_up=2, validate_every=100, log_every=1)
    whole = train(run)
    first = train(replace(run, out=tmp_path / "first", backup=backup), stop_at=2)
    assert not first.finished
    second = train(replace(run, out=tmp_path / "second", backup=backup))
    assert second.finished
    assert second.first.losses == whole.first.losses[3:]
    assert all(torch.equal(a, b) for a, b in zip(second.weights, whole.weights, strict=True))
    assert not list(tmp_path.rglob("*.partial"))
    alone = train(replace(run, out=tmp_path / "second", backup=backup))
    assert alone.first.losses == []


def test_a_backup_that_cannot_be_written_is_told_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    run = Run(tmp_path / "run", steps=2, batch=2, workers=0, validate_every=100, log_every=1)
    assert train(replace(run, backup=str(tmp_path / "file" / "run"))).finished
    assert "was not copied" in caplog.text
