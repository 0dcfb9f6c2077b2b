"""Processes of several machines: one checkpoint, or a message. As a script this file is one of two processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.data.datasets import Data
from training.engine.loop import Report, fit
from training.engine.processes import agree, checksum, describe, means, total
from training.engine.run import Run, own_share
from training.engine.sources import ByNumber, Sample
from training.engine.turn import Turn

SOURCE = ByNumber(lambda index: {"x": torch.randn(3, generator=torch.Generator().manual_seed(index))})
ROWS = {"psnr": [0.1 * number + 1e-3 / (number + 1) for number in range(7)], "short": [3.0]}

Start = Callable[..., list[subprocess.Popen[bytes]]]


class Guess(nn.Module):
    """One linear layer; process 1 sleeps from step `sleep_at` on."""

    def __init__(self, sleep_at: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.sleep_at = sleep_at

    def forward(self, batch: Sample) -> dict[str, Tensor]:
        if int(batch["step"]) == self.sleep_at and own_share()[0] == 1:
            time.sleep(600)
        return {"loss": (self.layer(batch["x"]) - 1).square().mean()}


def settings(out: Path, **changes: Any) -> Run:
    return replace(Run(out, 5, batch=2, workers=0, precision="no", warm_up=0, ema=0.5, validate_every=100), **changes)


def learn(run: Run, module: Guess | None = None) -> Tensor:
    module = module or Guess()
    fit(run, SOURCE, [Turn("guess", module, 1e-2)], lambda: Report({}))
    return module.layer.weight.detach()


def test_a_checksum_sees_every_bit_and_every_name() -> None:
    x = torch.tensor([1.0, -0.0], dtype=torch.bfloat16)
    assert checksum([("a", x)]) == checksum([("a", x.clone())])
    others = [("b", x), ("a", x.abs()), ("a", x.float()), ("a", x[None])]
    assert len({checksum([pair]) for pair in [("a", x), *others]}) == 5


def test_options_are_described_by_what_files_hold_and_not_by_where_they_are(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_bytes(b"1" if name == "c" else b"0")
    a, b, c = (describe(replace(Data(tmp_path / n), shards=str(tmp_path / n / "w.bin"))) for n in "abc")
    assert a == b != c
    assert a["pairs.crop"] == "160"
    assert describe(Data(tmp_path), weights="x")["weights"] == "x"


def test_one_process_agrees_with_itself() -> None:
    agree({"a": "1"})
    assert means(ROWS) == {"psnr": pytest.approx(0.3 + 1e-3 * sum(1 / n for n in range(1, 8)) / 7), "short": 3.0}
    assert total(3) == 3


@pytest.mark.slow
def test_processes_share_figures_and_the_first_ones_checkpoint_and_refuse_to_differ(
    start_processes: Start, tmp_path: Path
) -> None:
    whole = learn(settings(tmp_path / "whole", batch=4, schedule="constant"))
    for rank, steps in (("0", 3), ("1", 1)):  # as after a stop of machines without a common disk
        learn(settings(tmp_path / rank, batch=4, steps=steps, schedule="constant"))
    processes = start_processes(__file__, *(["share", str(tmp_path / rank)] for rank in "01"))
    said = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    first, second = (json.loads((tmp_path / rank / "found.json").read_text()) for rank in "01")
    assert first == second
    assert first["means"] == means(ROWS)
    assert first["total"] == 3
    assert "The processes are not one run: pairs.crop differ" in first["refused"]
    assert "is 32 in process 0 and 64 in process 1" in first["refused"]
    torch.testing.assert_close(torch.tensor(first["weights"]), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(first["resumed from"]), torch.tensor(3))
    assert not (tmp_path / "1" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_process_that_waits_for_one_that_is_gone_ends_after_sigterm(start_processes: Start, tmp_path: Path) -> None:
    first, second = start_processes(__file__, *(["wait", str(tmp_path / rank)] for rank in "01"))
    try:
        while not (tmp_path / "0" / "checkpoint.pt").exists():  # both are past their first step
            assert first.poll() is None
            time.sleep(0.05)
        time.sleep(1)  # the first waits for the second's gradients
        first.send_signal(signal.SIGTERM)
        assert "without a checkpoint" in first.communicate(timeout=60)[1].decode()
        assert first.returncode == 128 + signal.SIGTERM
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def share(out: Path) -> None:
    """Process of the first test."""
    rank, world = own_share()
    found: dict[str, Any] = {
        "means": means({name: row[rank::world] for name, row in ROWS.items()}),
        "total": total(rank + 1),
    }
    data = Data(out)
    agree(describe(data))
    try:
        agree(describe(replace(data, pairs=replace(data.pairs, crop=32 * (1 + rank)))))
    except ValueError as error:
        found["refused"] = str(error)
    steps: list[int] = []

    class Watched(Guess):
        def forward(self, batch: Sample) -> dict[str, Tensor]:
            steps.append(int(batch["step"]))
            return super().forward(batch)

    found["weights"] = learn(settings(out, schedule="constant"), Watched()).tolist()
    found["resumed from"] = steps[0]
    (out / "found.json").write_text(json.dumps(found))


def main(what: str, out: Path) -> None:
    """One of two processes."""
    logging.basicConfig(level=logging.INFO)
    os.makedirs(out, exist_ok=True)
    if what == "share":
        share(out)
    else:
        learn(settings(out, steps=50, save_minutes=0, grace_seconds=1), Guess(sleep_at=1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
