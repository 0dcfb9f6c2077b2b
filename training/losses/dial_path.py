"""The way between the realistic and the faithful end: stage 2 of CTSR (arXiv 2503.14272) and OFTSR's distillation.

Straight path z^t = (1 - t) z^0 + t z^1 with the mean velocity from its start u(t) = (z^t - z^0) / t and the velocity
v = z^1 - z^0; then Eq. 7 of the paper, t' u(t') - t u(t) = (t' - t) v, holds exactly. The curved one of the endpoint
head is `ctsr.families.blend`: z^t = z^0 + t delta + t (1 - t) kappa. t is [B], 0 realistic and 1 faithful; latents are
[B, C, h, w], pictures [B, 3, H, W].
"""

import torch.nn.functional as F
from torch import Tensor

from training.losses.flow import between, per_sample


def delta_loss(delta: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """mean |delta - sg(z^1 - z^0)|^2."""
    return F.mse_loss(delta, (end - start).detach())


def path_loss(x: Tensor, start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """mean |D(z^t) - sg((1 - t) x^0 + t x^1)|^2: a picture of the path against the blend of its two ends.

    A straight line of latents decodes to pictures worse than the blend of its ends; kappa learns the curvature that is
    needed.
    """
    return F.mse_loss(x, between(start, end, t).detach())


def faithful_loss(x: Tensor, truth: Tensor, t: Tensor) -> Tensor:
    """mean of t |D(z^t) - x_H|^2: the nearer to the faithful end, the more the ground truth itself counts."""
    return (per_sample(t, x) * (x - truth).square()).mean()


def weigh_gradient(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, ...] to the bit, its gradient times `weight` [B]: so that a term that is one mean weighs its pictures."""
    return x.detach() + per_sample(weight, x) * (x - x.detach())


def flow_loss(way: Tensor, later_way: Tensor, v: Tensor, step: Tensor) -> Tensor:
    """OFTSR's form (arXiv 2412.09465): mean |t' u(t') - sg(t u(t) + dt v(z^t, t))|^2.

    Args:
        way: t u(t), where the student says the path is at t, seen from its start.
        later_way: the same at t' = t + dt.
        v: velocity at z^t.
        step: dt [B].
    """
    return F.mse_loss(later_way, (way + per_sample(step, v) * v).detach())


def printed_path_loss(way: Tensor, later_way: Tensor, v: Tensor, step: Tensor) -> Tensor:
    """Eq. 8 as printed: mean |t eps_T(z_0, t) - t' eps_T(z_0, t') + dt eps_S(z_t, t)|^2.

    The roles are the reverse of OFTSR's: the frozen teacher gives the two ways, the student the velocity, which must
    then be integrated. Arguments as for `flow_loss`.
    """
    return F.mse_loss(per_sample(step, v) * v, (later_way - way).detach())
