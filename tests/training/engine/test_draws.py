"""Noise that belongs to a sample, whatever its batch, its process or the step it is seen in."""

import pytest
import torch

from training.engine.draws import Draws

SHAPE = (2, 3, 5)


def normal(index: list[int], name: str = "noise", seed: int = 0) -> torch.Tensor:
    return Draws(torch.tensor(index), seed).normal(name, torch.empty(len(index), *SHAPE))


def test_a_sample_has_the_same_numbers_in_every_batch() -> None:
    whole = Draws(torch.arange(6), 3)
    for row in range(6):
        alone = Draws(torch.tensor([row]), 3)
        like = torch.empty(1, *SHAPE)
        assert torch.equal(alone.normal("a", like), whole.normal("a", like.expand(6, *SHAPE))[row : row + 1])
        assert torch.equal(alone.uniform("a"), whole.uniform("a")[row : row + 1])
        assert torch.equal(alone.integers("a", 0, 999), whole.integers("a", 0, 999)[row : row + 1])


def test_asking_again_gives_the_same_and_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    assert torch.equal(normal([4, 9]), normal([4, 9]))
    assert torch.equal(torch.get_rng_state(), state)


def test_another_sample_name_or_seed_has_other_numbers() -> None:
    rows = [normal([1]), normal([2]), normal([1], name="other"), normal([1], seed=1), normal([2], seed=1)]
    assert len({row.numpy().tobytes() for row in rows}) == len(rows)


def test_every_process_and_version_seeds_a_sample_alike() -> None:
    seeds = [generator.initial_seed() for generator in Draws(torch.tensor([0, 41]), 7).generators("noise")]
    assert seeds == [457640553946058615, 6203427650434542017]


def test_normal_numbers_are_normal() -> None:
    drawn = Draws(torch.arange(200)).normal("noise", torch.empty(200, 4, 8, 8))
    assert drawn.dtype == torch.float32
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)
    assert drawn.std().item() == pytest.approx(1, abs=0.02)
    correlation = (drawn[:-1] * drawn[1:]).mean().item()
    assert correlation == pytest.approx(0, abs=0.02)


def test_uniform_numbers_fill_their_range() -> None:
    drawn = Draws(torch.arange(2000)).uniform("u", -2.0, 3.0)
    assert drawn.shape == (2000,)
    assert -2 <= drawn.min() < -1.97
    assert 2.97 < drawn.max() < 3
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.1)


def test_integers_include_both_ends() -> None:
    drawn = Draws(torch.arange(500)).integers("i", 20, 23)
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == [20, 21, 22, 23]
    assert counts.min() > 90
