"""Stage 2's losses: what they are zero for, and where their gradients go."""

import pytest
import torch
from torch import Tensor

from training.losses.dial_path import delta_loss, faithful_loss, flow_loss, path_loss, printed_path_loss, weigh_gradient
from training.losses.flow import between, per_sample

T = torch.tensor([0.2, 0.7])
LATER = torch.tensor([0.5, 0.9])


def pictures(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(seed))


def way(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """t u(t) of the straight path, with u(t) its mean velocity from the start."""
    u = (between(start, end, t) - start) / per_sample(t, start)
    return per_sample(t, start) * u


def test_equation_7_holds_on_the_straight_path():
    start, end = pictures(0), pictures(1)
    difference = way(start, end, LATER) - way(start, end, T)
    assert torch.allclose(difference, per_sample(LATER - T, start) * (end - start), atol=1e-6)


@pytest.mark.parametrize("loss", [flow_loss, printed_path_loss])
def test_a_straight_path_with_its_own_velocity_costs_nothing(loss):
    start, end = pictures(0), pictures(1)
    ways = way(start, end, T), way(start, end, LATER)
    assert loss(*ways, end - start, LATER - T) < 1e-12
    assert loss(*ways, 2 * (end - start), LATER - T) > 1e-3


def test_the_flow_loss_moves_the_later_way_and_the_printed_one_the_velocity():
    moved = {flow_loss: [False, True, False], printed_path_loss: [False, False, True]}
    for loss, wanted in moved.items():
        parts = [pictures(seed).requires_grad_() for seed in range(3)]
        loss(*parts, LATER - T).backward()
        assert [part.grad is not None for part in parts] == wanted


def test_the_path_loss_vanishes_at_its_ends():
    x0, x1 = pictures(0), pictures(1)
    for t, x in ((0.0, x0), (1.0, x1)):
        assert path_loss(x, x0, x1, torch.full((2,), t)) == 0
    assert path_loss(x0, x0, x1, T) > 1e-3


def test_the_path_loss_moves_the_picture_between_and_not_its_ends():
    x, x0, x1 = (pictures(seed).requires_grad_() for seed in range(3))
    path_loss(x, x0, x1, T).backward()
    assert x.grad is not None
    assert x0.grad is x1.grad is None


def test_the_way_loss_moves_delta_alone():
    delta, start, end = (pictures(seed).requires_grad_() for seed in range(3))
    delta_loss(delta, start, end).backward()
    assert torch.allclose(delta.grad, 2 * (delta - end + start).detach() / delta.numel(), atol=1e-7)
    assert start.grad is end.grad is None


def test_the_truth_counts_by_t():
    x, truth = pictures(0), pictures(1)
    each = [faithful_loss(x, truth, torch.tensor([a, b])) for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0))]
    assert each[0] + each[1] == pytest.approx(each[2])
    assert torch.equal(each[2], torch.nn.functional.mse_loss(x, truth))
    assert each[3] == 0


def test_a_weighed_gradient_leaves_the_numbers():
    x = pictures(0).requires_grad_()
    weighed = weigh_gradient(x, T)
    assert torch.equal(weighed, x)
    weighed.square().sum().backward()
    assert torch.allclose(x.grad, per_sample(T, x) * 2 * x.detach())
