"""OFTSR's maths (arXiv 2412.09465): a noise-augmented conditional flow, and its distillation into one step.

    x_0 = sqrt(1 - sigma^2) y + sigma eps        x_t = (1 - t) x_0 + t x_1        v(x_t, t) ~ x_1 - x_0

y is the low-resolution picture's latent, x_1 the photograph's. The student v_phi(x_0, t) is the mean velocity of the
teacher's path from x_0 between 0 and t: x_0 + t v_phi(x_0, t) is the teacher's state at t. Going on from there to s > t
by the teacher, whose mean velocity in between is v_theta,

    s (v_phi(s) - v_phi(t)) = (s - t) (v_theta - v_phi(t))

Time is the paper's own, in [0, 1]: 0 is faithful, 1 realistic, so the dial of `ctsr` is 1 - t. Velocities are callables
v(x, t) of states [B, C, h, w] and times [B]; condition and prompt are theirs. Nothing here was taken from its code.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
Solver = Literal["midpoint", "heun", "ralston"]

NODES: dict[Solver, float] = {"midpoint": 1 / 2, "heun": 1.0, "ralston": 2 / 3}
"""Where in the step a second-order Runge-Kutta method looks a second time."""


def per_sample(t: Tensor, x: Tensor) -> Tensor:
    """Numbers [B] in a shape that multiplies x [B, ...]."""
    return t.reshape(-1, *[1] * (x.ndim - 1))


def noisy_start(y: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """x_0 in fp32: y with a share of noise, its variance kept where y has unit variance."""
    return (1 - sigma**2) ** 0.5 * y.float() + sigma * noise


def between(x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """x_t on the straight line."""
    share = per_sample(t, x_0)
    return (1 - share) * x_0 + share * x_1


def velocity_loss(v: Velocity, x_0: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
    """The teacher's: mean |v(x_t, t) - (x_1 - x_0)|."""
    return F.l1_loss(v(between(x_0, x_1, t), t), x_1 - x_0)


def step_velocity(v: Velocity, x: Tensor, t: Tensor, step: Tensor, solver: Solver, slope: Tensor) -> Tensor:
    """Mean velocity over a step by second-order Runge-Kutta: v + (v(x + r h v, t + r h) - v) / (2 r).

    Args:
        v: of the flow.
        x: state at t, [B, C, h, w].
        t, step: time and h, each [B].
        solver: chooses r, see `NODES`.
        slope: v(x, t).
    """
    r = NODES[solver]
    ahead = v(x + r * per_sample(step, x) * slope, t + r * step)
    return slope + (ahead - slope) / (2 * r)


def integrate(v: Velocity, x_0: Tensor, steps: int, solver: Solver) -> Tensor:
    """x_1 of the flow from x_0, in `steps` equal steps of two evaluations each."""
    x = x_0
    step = torch.full((x.shape[0],), 1 / steps, device=x.device)
    for number in range(steps):
        t = number * step
        x = x + step_velocity(v, x, t, step, solver, v(x, t)) / steps
    return x


def later(t: Tensor, dt: float) -> Tensor:
    """s = t + dt, at most 1: the flow is trained up to there and no further."""
    return (t + dt).clamp_max(1.0)


def distillation_losses(
    student: Velocity, teacher: Velocity, x_0: Tensor, t: Tensor, dt: float, solver: Solver
) -> dict[str, Tensor]:
    """The three terms, unweighted means of squares; only the student gets gradients.

    | term     | what is zero at the solution                                                                  |
    |----------|-----------------------------------------------------------------------------------------------|
    | distil   | v_phi(s) - sg[v_phi(t) + (s - t) / s (v_theta - v_phi(t))], v_theta the solver's from t to s  |
    | align    | (1 - t) (v_phi(t) - sg[v_theta(x_t, t)]): zero for straight paths                              |
    | boundary | v_phi(0) - sg[v_theta(x_0, 0)]                                                                |

    Args:
        student: v_phi(x_0, t), called with x_0 at every t.
        teacher: v_theta(x, t), never with a gradient.
        x_0: [B, C, h, w], fp32.
        t: [B], above 0 and below 1.
        dt: step; the last one is shortened so that s <= 1.
        solver: of the teacher's step.
    """
    s = later(t, dt)
    start = student(x_0, t)
    with torch.no_grad():
        x_t = x_0 + per_sample(t, x_0) * start
        slope = teacher(x_t, t)
        mean = step_velocity(teacher, x_t, t, s - t, solver, slope)
        aim = start + per_sample((s - t) / s, x_0) * (mean - start)
        first = teacher(x_0, torch.zeros_like(t))
    return {
        "distil": F.mse_loss(student(x_0, s), aim),
        "align": (per_sample(1 - t, x_0) * (start - slope)).square().mean(),
        "boundary": F.mse_loss(student(x_0, torch.zeros_like(t)), first),
    }
