"""On a flow whose paths are known: dx/dt = t x, so x(t) = x_0 exp(t^2 / 2)."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from training.losses import flow
from training.losses.flow import Solver

SOLVERS = get_args(Solver)


def field(x: Tensor, t: Tensor) -> Tensor:
    """v(x, t) = t x."""
    return flow.per_sample(t, x) * x


def mean_velocity(x_0: Tensor, t: Tensor) -> Tensor:
    """The exact student: (x(t) - x_0) / t, and v(x_0, 0) = 0 at t = 0."""
    t = flow.per_sample(t, x_0).double()
    growth = torch.where(t > 0, torch.expm1(t**2 / 2) / t.clamp_min(1e-9), torch.zeros_like(t))
    return (x_0.double() * growth).to(x_0.dtype)


def straight(x: Tensor, t: Tensor) -> Tensor:
    """A flow of straight paths: every state moves by 1, whatever the time."""
    return torch.ones_like(x)


@pytest.fixture
def x_0() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def t() -> Tensor:
    return torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)


def test_the_start_keeps_unit_variance_and_is_the_picture_without_noise() -> None:
    y, noise = torch.randn(2, 1, 4, 50, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(flow.noisy_start(y, noise, 0.0), y)
    assert flow.noisy_start(y, noise, 0.6).var() == pytest.approx(1, abs=0.03)


def test_the_line_runs_from_start_to_photograph(x_0: Tensor) -> None:
    x_1 = x_0 + 2
    ends = flow.between(x_0, x_1, torch.tensor([0.0, 1.0, 0.25], dtype=torch.float64))
    assert torch.equal(ends[0], x_0[0])
    assert torch.equal(ends[1], x_1[1])
    assert torch.allclose(ends[2], x_0[2] + 0.5)


def test_the_teachers_loss_is_the_mean_error_of_the_velocity(x_0: Tensor, t: Tensor) -> None:
    assert flow.velocity_loss(straight, x_0, x_0 + 1, t) < 1e-12
    assert flow.velocity_loss(straight, x_0, x_0 + 3, t) == pytest.approx(2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_are_of_second_order(solver: Solver, x_0: Tensor) -> None:
    exact = x_0 * torch.exp(torch.tensor(0.5, dtype=torch.float64))
    coarse, fine = ((flow.integrate(field, x_0, steps, solver) - exact).abs().max() for steps in (16, 32))
    assert coarse / fine == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_mean_velocity_of_a_step_has_an_error_of_second_order(solver: Solver, x_0: Tensor, t: Tensor) -> None:
    x_t = x_0 + flow.per_sample(t, x_0) * mean_velocity(x_0, t)

    def error(dt: float) -> Tensor:
        s = t + dt
        exact = (x_0 + flow.per_sample(s, x_0) * mean_velocity(x_0, s) - x_t) / dt
        step = torch.full_like(t, dt)
        return (flow.step_velocity(field, x_t, t, step, solver, field(x_t, t)) - exact).abs().max()

    assert error(0.05) / error(0.025) == pytest.approx(4, rel=0.15)


def test_the_identity_holds_to_first_order_with_the_velocity_at_t(x_0: Tensor, t: Tensor) -> None:
    x_t = x_0 + flow.per_sample(t, x_0) * mean_velocity(x_0, t)

    def gap(dt: float) -> Tensor:
        s = t + dt
        left = flow.per_sample(s, x_0) * (mean_velocity(x_0, s) - mean_velocity(x_0, t))
        return (left - dt * (field(x_t, t) - mean_velocity(x_0, t))).abs().max()

    assert gap(0.02) / gap(0.01) == pytest.approx(4, rel=0.1)  # what first order leaves out is of second


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_exact_student_has_no_distillation_loss_up_to_the_solvers_order(
    solver: Solver, x_0: Tensor, t: Tensor
) -> None:
    roots = [flow.distillation_losses(mean_velocity, field, x_0, t, dt, solver)["distil"] ** 0.5 for dt in (0.1, 0.05)]
    assert roots[1] < 1e-4
    assert roots[0] / roots[1] == pytest.approx(8, rel=0.25)  # (s - t) / s times an error of second order
    assert flow.distillation_losses(mean_velocity, field, x_0, t, 0.05, solver)["boundary"] == 0


def test_a_wrong_student_has_every_loss(x_0: Tensor, t: Tensor) -> None:
    terms = flow.distillation_losses(lambda x, t: mean_velocity(x, t) + 1, field, x_0, t, 0.05, "midpoint")
    assert min(terms.values()) > 1e-4


def test_alignment_is_zero_on_straight_paths_only(x_0: Tensor, t: Tensor) -> None:
    assert flow.distillation_losses(straight, straight, x_0, t, 0.05, "midpoint")["align"] == 0
    assert flow.distillation_losses(mean_velocity, field, x_0, t, 0.05, "midpoint")["align"] > 1e-4


def test_the_last_step_ends_at_one(x_0: Tensor) -> None:
    times: list[Tensor] = []

    def student(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return mean_velocity(x, t)

    t = torch.tensor([0.5, 0.97, 0.99], dtype=torch.float64)
    terms = flow.distillation_losses(student, field, x_0, t, 0.05, "heun")
    assert torch.allclose(times[1], torch.tensor([0.55, 1.0, 1.0], dtype=torch.float64))
    assert terms["distil"] < 1e-8


def test_gradients_reach_the_student_where_they_should_and_the_teacher_never(x_0: Tensor, t: Tensor) -> None:
    class Gain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at: dict[float, Tensor] = {}
            self.weight = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out = self.weight * mean_velocity(x, t)
            if out.requires_grad:
                out.retain_grad()
                self.at[float(t[0])] = out
            return out

    for name, asked, others in (("distil", 0.15, (0.1, 0.0)), ("align", 0.1, (0.15, 0.0)), ("boundary", 0.0, (0.1,))):
        student, teacher = Gain(), Gain()
        flow.distillation_losses(student, teacher, x_0 + 1, t, 0.05, "midpoint")[name].backward()
        grads = {round(time, 6): out.grad for time, out in student.at.items()}
        assert grads[asked] is not None, name
        assert all(grads[other] is None for other in others), name  # sg[.]
        assert teacher.weight.grad is None
        assert not teacher.at, name  # nor through x_t
