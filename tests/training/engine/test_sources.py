"""Samples by number: dealt out to processes, made by workers, finished on the device."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from training.engine.run import Run
from training.engine.sources import ByNumber, Numbers, Sample


def run(steps: int = 3, batch: int = 2, accumulation: int = 1, workers: int = 0) -> Run:
    return Run(Path("unused"), steps=steps, batch=batch, accumulation=accumulation, workers=workers)


def make(index: int) -> Sample:
    return {"x": torch.randn(3, generator=torch.Generator().manual_seed(index))}


def read(settings: Run, start: int = 0, rank: int = 0, world: int = 1) -> list[Sample]:
    return list(ByNumber(make).batches(settings, start, {}, rank, world))


def test_a_step_of_two_processes_has_the_samples_of_one_with_twice_the_batch() -> None:
    whole = list(Numbers(run(batch=4), 0, 0, 1))
    halves = [list(Numbers(run(batch=2), 0, rank, 2)) for rank in (0, 1)]
    for step in range(3):
        parts = [half[2 * step : 2 * step + 2] for half in halves]
        assert parts[0] + parts[1] == whole[4 * step : 4 * step + 4]


def test_a_step_of_two_accumulated_batches_has_the_samples_of_one_of_twice_the_size() -> None:
    assert list(Numbers(run(batch=1, accumulation=2), 0, 0, 1)) == list(Numbers(run(batch=2), 0, 0, 1))


def test_a_resumed_run_sees_the_rest() -> None:
    for rank in (0, 1):
        whole = Numbers(run(accumulation=3), 0, rank, 2)
        rest = Numbers(run(accumulation=3), 2, rank, 2)
        assert len(whole) == len(list(whole)) == 18
        assert list(rest) == list(whole)[12:]
        assert len(rest) == 6


def test_workers_make_the_same_batches() -> None:
    alone, helped = read(run()), read(run(workers=2))
    assert [batch["index"].tolist() for batch in alone] == [[0, 1], [2, 3], [4, 5]]
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a["index"], b["index"])
        assert torch.equal(a["x"], b["x"])


def test_where_nothing_can_be_forked_batches_are_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert [batch["index"].tolist() for batch in read(run(workers=2))] == [[0, 1], [2, 3], [4, 5]]


def test_a_worker_outlives_a_sigterm_to_the_whole_group() -> None:
    batches = ByNumber(make).batches(run(steps=40, workers=1), 0, {}, 0, 1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    assert len(list(batches)) == 39


def test_a_batch_is_finished_on_the_device() -> None:
    source = ByNumber(lambda index: {}, lambda batch: {**batch, "x": 2.0 * batch["index"]})
    (batch,) = list(source.batches(run(steps=1), 0, {}, 0, 1))
    assert batch.keys() == {"index"}
    assert source.on_device(batch, torch.device("cpu"))["x"].tolist() == [0, 2]
    assert source.note_shards(batch) == {}
