"""The one-step formulas: every supported method is one equation with other constants.

    o = U(z_L, tau_u)      z0 = a * z_L + b * o      z(t) = z0 + t * delta + t * (1 - t) * kappa

z_L = s * E(x_L, tau_e) is a scaled latent, o the UNet's output, t the dial: **0 = most realistic, 1 = most faithful**
(CTSR's direction; every other family is converted to it). Sources: OSEDiff (arXiv 2406.08177), CTSR (2503.14272),
TADSR (2508.16557), PiSA-SR (2412.03017), OFTSR (2412.09465). All code is our own.

A pipeline calls::

    latents = [encode(x, tau) for tau in family.encoder_timesteps]
    inputs = family.unet_inputs(latents, generator)
    outputs = [unet(each.sample, each.timestep) for each in inputs]   # one pass, or two; tiled or not
    z = blend(family.endpoints(inputs, outputs), t)                   # any t, no UNet pass
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Parameterization = Literal["epsilon", "residual", "scaled_residual", "flow"]
Timestep: TypeAlias = int | Tensor
Dial: TypeAlias = float | Sequence[float] | Tensor

TRAIN_TIMESTEPS = 1000


def _scaled_linear_alphas_cumprod(beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """alpha_bar of the scaled-linear schedule of SD 2.1-base: [1000] fp64, falling from 0.99915 to 0.00466."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, TRAIN_TIMESTEPS, dtype=torch.float64, device="cpu")
    return torch.cumprod(1 - roots**2, dim=0)


ALPHAS_CUMPROD = _scaled_linear_alphas_cumprod()
_ALPHA_BARS = tuple(float(bar) for bar in ALPHAS_CUMPROD.unbind())


def alpha_bar(timestep: Timestep) -> Tensor:
    """alpha_bar at tau in 0..999: fp64, [] for an int and [B, 1, 1, 1] for a vector [B], on the vector's device."""
    steps = torch.as_tensor(timestep)
    if steps.is_floating_point() or steps.ndim > 1 or bool(((steps < 0) | (steps >= TRAIN_TIMESTEPS)).any()):
        raise ValueError(
            f"timestep must be an integer from 0 to {TRAIN_TIMESTEPS - 1}, or a vector of one integer a picture; "
            f"got {timestep!r}."
        )
    values = ALPHAS_CUMPROD.to(steps.device)[steps.long()]
    return values.reshape(-1, 1, 1, 1) if steps.ndim else values


def coefficients(parameterization: Parameterization, timestep: Timestep) -> tuple[Tensor, Tensor]:
    """a and b of z0 = a * z_L + b * o.

    | parameterization  | a              | b                            | used by             |
    |-------------------|----------------|------------------------------|---------------------|
    | `epsilon`         | 1 / sqrt(abar) | -sqrt(1 - abar) / sqrt(abar) | OSEDiff, CTSR       |
    | `scaled_residual` | 1 / sqrt(abar) | -1                           | TADSR               |
    | `residual`        | 1              | -1                           | PiSA-SR, ctsr-mini  |
    | `flow`            | 1              | +1                           | OFTSR, on its x_0   |

    Args:
        parameterization: what the UNet predicts.
        timestep: tau in 0..999, an int or an integer vector [B].

    Returns:
        Two fp32 tensors, computed in fp64: [] for an int, [B, 1, 1, 1] for a vector.
    """
    abar = alpha_bar(timestep)
    one = torch.ones_like(abar)
    if parameterization == "epsilon":
        a, b = abar.rsqrt(), -((1 - abar) / abar).sqrt()
    elif parameterization == "scaled_residual":
        a, b = abar.rsqrt(), -one
    elif parameterization == "residual":
        a, b = one, -one
    elif parameterization == "flow":
        a, b = one, one
    else:
        raise ValueError(f"Unknown parameterization {parameterization!r}: use one of {get_args(Parameterization)}.")
    return a.float(), b.float()


def predict_x0(z: Tensor, o: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a * z + b * o in fp32 whatever the inputs' dtype (at tau = 999 the gain is 14.6); shapes [B, C, h, w]."""
    return a.to(z.device) * z.float() + b.to(o.device) * o.float()


@dataclass(frozen=True)
class Endpoints:
    """The two ends of the dial and the curvature between them, each [B, C, h, w], scaled latents, fp32.

    Attributes:
        z0: the most realistic latent, t = 0.
        delta: from z0 to the most faithful latent, z1 = z0 + delta; None is zero (the family has no dial).
        kappa: curvature of the path between them, 0 at both ends; None is zero (a straight line).
    """

    z0: Tensor
    delta: Tensor | None = None
    kappa: Tensor | None = None


def check_dial(name: str, t: Dial) -> None:
    """Raise ValueError, calling it `name`, unless every value of `t` is a number in [0, 1]; NaN is not."""
    values = torch.tensor(math.nan)  # of what is no number
    with suppress(TypeError):
        values = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
    if not bool(((values >= 0) & (values <= 1)).all()):
        given = f"is {t!r}" if values.numel() == 1 else f"has values from {values.min():g} to {values.max():g}"
        raise ValueError(f"{name} {given}: give a number from 0 (most realistic) to 1 (most faithful).")


def _dial_tensor(t: Dial, z: Tensor) -> Tensor:
    """`t` as fp32 on z's device, in a shape that broadcasts to z [B, C, h, w]. Raises ValueError as `blend` says."""
    check_dial("t", t)
    dial = torch.as_tensor(t, dtype=torch.float32, device=z.device)
    batch, _, height, width = z.shape
    if dial.ndim == 0 or dial.shape == (batch,):
        return dial.reshape(-1, 1, 1, 1)
    if dial.shape == (height, width):
        return dial[None, None]
    if dial.shape in ((1, 1, height, width), (batch, 1, height, width)):
        return dial
    raise ValueError(
        f"t must be a number, a vector of {batch} numbers (one a picture), or a map of the latents' size "
        f"[{height}, {width}] or [{batch}, 1, {height}, {width}]; got shape {list(dial.shape)}. Resize the map first."
    )


def blend(endpoints: Endpoints, t: Dial) -> Tensor:
    """z(t) = z0 + t * delta + t * (1 - t) * kappa.

    Args:
        endpoints: what `Family.endpoints` returned.
        t: 0 = most realistic, 1 = most faithful. A number, one number a picture [B], or a map [h, w], [1, 1, h, w] or
            [B, 1, h, w] at the latents' resolution.

    Returns:
        [B, C, h, w] fp32: z0 to the bit where t = 0, z0 + delta to the bit where t = 1.

    Raises:
        ValueError: t is not finite, outside [0, 1], or of another shape.
    """
    z0 = endpoints.z0
    dial = _dial_tensor(t, z0)
    z = z0
    if endpoints.delta is not None:
        z = z + dial * endpoints.delta
    if endpoints.kappa is not None:
        z = torch.where(dial < 1, z + dial * (1 - dial) * endpoints.kappa, z)
    return torch.where(dial > 0, z, z0)


@dataclass(frozen=True)
class UNetInput:
    """What one pass of the UNet is given.

    Attributes:
        start: what the pass starts from, x_0 [B, C, h, w]: z_L, or fp32 with noise.
        sample: the UNet's input in z_L's dtype: x_0, or [B, 2C, h, w] of a family with `concat_latent`.
        timestep: tau_u in 0..999.
        variant: the adapter to run with ("pix", "full"), None for the UNet as it is.
    """

    start: Tensor
    sample: Tensor
    timestep: int
    variant: str | None


@dataclass(frozen=True)
class Family:
    """How one method turns latents into endpoints. Change a default with `dataclasses.replace`.

    A family has one or two UNet passes, the realistic end first; a second pass gives the faithful end. A single pass
    with three output groups [o, delta, kappa] gives both ends and the curvature.

    Attributes:
        name: the key in `FAMILIES`.
        parameterization: what the UNet predicts, see `coefficients`.
        encoder_timesteps: tau_e of each encode, None for the plain encoder: one for all passes, or one a pass.
        unet_timesteps: tau_u of each pass; None runs every pass at its latent's own tau_e.
        variants: the adapter of each pass; empty for none.
        output_groups: 1, or 3 for [o, delta, kappa]; then a UNet may leave kappa out, whose path is straight.
        sigma: share of noise in the start x_0 = sqrt(1 - sigma^2) * z_L + sigma * eps; 0 starts from z_L.
        concat_latent: the UNet sees concat(x_0, z_L).
    """

    name: str
    parameterization: Parameterization
    encoder_timesteps: tuple[int | None, ...] = (None,)
    unet_timesteps: tuple[int, ...] | None = (999,)
    variants: tuple[str, ...] = ()
    output_groups: Literal[1, 3] = 1
    sigma: float = 0.0
    concat_latent: bool = False

    def __post_init__(self) -> None:
        if self.passes not in (1, 2) or len(self.encoder_timesteps) not in (1, self.passes):
            raise ValueError(f"Family {self.name!r} needs 1 or 2 UNet passes, and 1 encode or one a pass.")
        if self.variants and len(self.variants) != self.passes:
            raise ValueError(f"Family {self.name!r} needs one variant a pass or none.")
        if self.output_groups not in (1, 3) or (self.output_groups == 3 and self.passes == 2):
            raise ValueError(f"Family {self.name!r} needs output_groups 1, or 3 with a single pass.")
        if not 0 <= self.sigma < 1:
            raise ValueError(f"Family {self.name!r} needs 0 <= sigma < 1.")

    @property
    def timesteps(self) -> tuple[int, ...]:
        """tau_u of each UNet pass, the realistic end first."""
        if self.unet_timesteps is not None:
            return self.unet_timesteps
        steps = tuple(step for step in self.encoder_timesteps if step is not None)
        if len(steps) != len(self.encoder_timesteps):
            raise ValueError(f"Family {self.name!r} needs a timestep for its encoder: its UNet runs at the same one.")
        return steps

    @property
    def passes(self) -> int:
        """UNet passes for a picture, whatever t."""
        return len(self.timesteps)

    @property
    def dial_is_timestep(self) -> bool:
        """Whether the paper's method turns its dial by changing the timestep (TADSR, OFTSR).

        Then t blends the results of the two end timesteps; `at` is the paper's dial.
        """
        return len(set(self.timesteps)) == 2

    def at(self, t: float, timesteps: Sequence[int] = ()) -> "Family":
        """The method at t of its own dial: a single pass at the timestep that t stands for, and no blend.

        Args:
            t: 0 = most realistic, 1 = most faithful.
            timesteps: tau at even steps of t from 0 to 1; between them it is linear. By default the two ends.

        Raises:
            ValueError: t is not a number in [0, 1], or the method has no timestep for a dial.
        """
        check_dial("t", t)
        if not self.dial_is_timestep:
            raise ValueError(f"Family {self.name!r} has no timestep for a dial: pass t to the call instead.")
        known = timesteps or self.timesteps
        place = float(t) * (len(known) - 1)
        below = min(int(place), len(known) - 2)
        timestep = round(known[below] + (place - below) * (known[below + 1] - known[below]))
        if self.unet_timesteps is None:
            return replace(self, encoder_timesteps=(timestep,))
        return replace(self, unet_timesteps=(timestep,))

    @property
    def gain(self) -> float:
        """Largest |b| of the passes: how much an error of the UNet's output grows in z0; 14.6 for noise at 999."""
        if self.parameterization != "epsilon":
            return 1.0
        return max(math.sqrt((1 - abar) / abar) for abar in (_ALPHA_BARS[step] for step in self.timesteps))

    @property
    def has_dial(self) -> bool:
        """Whether t changes the picture."""
        return self.passes == 2 or self.output_groups == 3

    @property
    def needs_seed(self) -> bool:
        """Whether `unet_inputs` draws noise and so needs a generator."""
        return self.sigma > 0

    def unet_inputs(self, latents: Sequence[Tensor], generator: torch.Generator | None = None) -> list[UNetInput]:
        """What the UNet is given in each pass, the realistic end first.

        Args:
            latents: scaled latents z_L, one for each of `encoder_timesteps`, each [B, C, h, w], any float dtype.
            generator: source of the start noise, which is drawn on the generator's own device; only families with
                `needs_seed` use it.

        Raises:
            ValueError: a wrong number of latents, or no generator where one is needed.
        """
        if len(latents) != len(self.encoder_timesteps):
            raise ValueError(
                f"Family {self.name!r} needs {len(self.encoder_timesteps)} latents, one for each encoder timestep "
                f"{self.encoder_timesteps}; got {len(latents)}."
            )
        noise = self._noise(latents[0], generator)
        inputs: list[UNetInput] = []
        for index, timestep in enumerate(self.timesteps):
            z = latents[min(index, len(latents) - 1)]
            start = z if noise is None else (1 - self.sigma**2) ** 0.5 * z.float() + self.sigma * noise
            sample = start.to(z.dtype)
            if self.concat_latent:
                sample = torch.cat([sample, z], dim=1)
            inputs.append(UNetInput(start, sample, timestep, self.variants[index] if self.variants else None))
        return inputs

    def _noise(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """eps like z in fp32, or None for a family that starts from z_L."""
        if not self.needs_seed:
            return None
        if generator is None:
            raise ValueError(
                f"Family {self.name!r} starts from noise: pass generator=torch.Generator().manual_seed(seed)."
            )
        return torch.randn(z.shape, generator=generator, device=generator.device).to(z.device)

    def endpoints(self, inputs: Sequence[UNetInput], outputs: Sequence[Tensor]) -> Endpoints:
        """The ends of the dial, in fp32; `delta` and `kappa` None where the family has none.

        Args:
            inputs: what `unet_inputs` gave.
            outputs: the UNet's result for each, [B, output_groups * C, h, w], any float dtype; without kappa, 2 * C.

        Raises:
            ValueError: a UNet of other output channels.
        """
        ends: list[Tensor] = []
        groups: list[Tensor] = []
        for given, output in zip(inputs, outputs, strict=True):
            channels = given.start.shape[1]
            number, rest = divmod(output.shape[1], channels)
            if rest or number not in ((2, 3) if self.output_groups == 3 else (1,)):  # kappa may be left out
                raise ValueError(
                    f"Family {self.name!r} needs a UNet of {self.output_groups * channels} output channels for "
                    f"{channels} latent channels; this one gives {output.shape[1]}. Load the UNet that belongs to the "
                    "family."
                )
            o, *groups = output.float().chunk(number, dim=1)
            ends.append(predict_x0(given.start, o, *coefficients(self.parameterization, given.timestep)))
        if self.passes == 2:
            return Endpoints(ends[0], ends[1] - ends[0])
        return Endpoints(ends[0], *groups)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family("ctsr", "epsilon", output_groups=3),
            Family("osediff", "epsilon"),
            # 500 is TADSR's default; 200 has the highest PSNR of its published sweep, which is not monotone.
            Family("tadsr", "scaled_residual", encoder_timesteps=(500, 200), unet_timesteps=None),
            Family("pisa", "residual", unet_timesteps=(1, 1), variants=("full", "pix")),
            # OFTSR's own t is 1 - ours and its UNet time is 999 * own t; sigma is its DIV2K setting.
            Family("oftsr", "flow", unet_timesteps=(999, 0), sigma=0.2, concat_latent=True),
        )
    }
)


def get_family(name: str) -> Family:
    """The family of that name with its defaults. Raises ValueError that lists the names."""
    if name not in FAMILIES:
        raise ValueError(f"Unknown family {name!r}: use one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]
