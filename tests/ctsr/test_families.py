"""The one-step formulas against analytic UNets and the published constants."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from ctsr.families import (
    ALPHAS_CUMPROD,
    FAMILIES,
    Endpoints,
    Family,
    blend,
    check_dial,
    coefficients,
    get_family,
    predict_x0,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def endpoints_of(family, predict, latents, generator=None):
    """The family's endpoints with `predict(sample, timestep, variant)` as the UNet."""
    inputs = family.unet_inputs(latents, generator)
    return family.endpoints(inputs, [predict(each.sample, each.timestep, each.variant) for each in inputs])


class Recorder:
    """An analytic UNet that remembers its calls; `outputs` maps (timestep, variant) to a function of its input."""

    def __init__(self, output):
        self.output = output
        self.calls: list[tuple[tuple[int, ...], torch.dtype, int, str | None]] = []

    def __call__(self, z: Tensor, timestep: int, variant: str | None) -> Tensor:
        self.calls.append((tuple(z.shape), z.dtype, timestep, variant))
        return self.output(z, timestep, variant)


@pytest.mark.parametrize(
    ("timestep", "root"),
    [
        (1, 0.99915),
        (100, 0.94563),
        (200, 0.86815),
        (300, 0.76844),
        (400, 0.65152),
        (500, 0.52567),
        (600, 0.40098),
        (800, 0.19201),
        (999, 0.06826),
    ],
)
def test_schedule_constants(timestep, root):
    assert ALPHAS_CUMPROD.dtype == torch.float64
    assert math.sqrt(ALPHAS_CUMPROD[timestep]) == pytest.approx(root, abs=6e-6)


def test_coefficients():
    a, b = coefficients("epsilon", 999)
    assert (a.dtype, b.dtype, a.shape) == (torch.float32, torch.float32, ())
    assert a.item() == pytest.approx(14.6488, abs=5e-5)
    assert b.item() == pytest.approx(-14.6146, abs=5e-5)
    assert coefficients("scaled_residual", 500)[0].item() == pytest.approx(1 / 0.52567, abs=1e-4)
    assert coefficients("scaled_residual", 500)[1] == -1
    assert coefficients("residual", 1) == (1, -1)
    assert coefficients("flow", 999) == (1, 1)


@pytest.mark.parametrize("parameterization", ["epsilon", "residual", "scaled_residual", "flow"])
def test_coefficients_of_a_vector_are_those_of_each(parameterization):
    steps = [0, 350, 999]
    a, b = coefficients(parameterization, torch.tensor(steps))
    assert a.shape == b.shape == (3, 1, 1, 1)
    for i, step in enumerate(steps):
        assert coefficients(parameterization, step) == (a[i], b[i])


def test_epsilon_and_scaled_residual_agree_near_350():
    """The gain of SD's epsilon passes 1 there alone."""
    gains = [coefficients("epsilon", step)[1].item() for step in range(1000)]
    assert 340 <= min(range(1000), key=lambda step: abs(gains[step] + 1)) <= 360


def test_epsilon_inverts_the_forward_process():
    x0, eps, steps = randn(2, 4, 5, 3), randn(2, 4, 5, 3, seed=1), torch.tensor([20, 999])
    abar = ALPHAS_CUMPROD[steps].reshape(-1, 1, 1, 1)
    noised = (abar.sqrt() * x0 + (1 - abar).sqrt() * eps).float()
    assert torch.allclose(predict_x0(noised, eps, *coefficients("epsilon", steps)), x0, atol=1e-5)


def test_predict_x0_is_fp32_for_bf16_inputs():
    z, o = randn(1, 4, 6, 6).bfloat16(), randn(1, 4, 6, 6, seed=1).bfloat16()
    a, b = coefficients("epsilon", 999)
    x0 = predict_x0(z, o, a, b)
    assert x0.dtype == torch.float32
    assert torch.equal(x0, a * z.float() + b * o.float())


@pytest.mark.parametrize("timestep", [-1, 1000, 0.5, torch.tensor([0, 1000]), torch.tensor([[1]])])
def test_a_wrong_timestep_is_refused(timestep):
    with pytest.raises(ValueError, match="0 to 999"):
        coefficients("epsilon", timestep)


def test_an_unknown_parameterization_is_refused():
    with pytest.raises(ValueError, match="scaled_residual"):
        coefficients("velocity", 1)  # type: ignore[arg-type]


def test_ctsr_gives_both_ends_and_the_bend_in_one_pass():
    z = randn(2, 4, 5, 3)
    o, delta, kappa = (randn(2, 4, 5, 3, seed=i) for i in (1, 2, 3))
    unet = Recorder(lambda *_: torch.cat([o, delta, kappa], dim=1))
    ends = endpoints_of(get_family("ctsr"), unet, [z])
    a, b = coefficients("epsilon", 999)
    assert torch.equal(ends.z0, a * z + b * o)
    assert torch.equal(ends.delta, delta)
    assert torch.equal(ends.kappa, kappa)
    assert unet.calls == [((2, 4, 5, 3), torch.float32, 999, None)]


def test_the_minis_ctsr_is_residual():
    z, o = randn(1, 32, 4, 4), randn(1, 96, 4, 4, seed=1)
    family = dataclasses.replace(get_family("ctsr"), parameterization="residual", encoder_timesteps=(250,))
    assert torch.equal(endpoints_of(family, lambda *_: o, [z]).z0, z - o[:, :32])
    assert (family.timesteps, family.passes, family.has_dial) == ((999,), 1, True)


def test_osediff_has_no_dial():
    z, o = randn(1, 4, 5, 3), randn(1, 4, 5, 3, seed=1)
    ends = endpoints_of(get_family("osediff"), lambda *_: o, [z])
    assert ends.delta is None
    assert ends.kappa is None
    assert torch.equal(blend(ends, 0.0), blend(ends, 1.0))
    assert torch.allclose(ends.z0, 14.6488 * z - 14.6146 * o, atol=1e-3)


def test_tadsr_runs_each_end_at_its_own_timestep():
    high, low = randn(1, 4, 5, 3), randn(1, 4, 5, 3, seed=1)
    unet = Recorder(lambda z, timestep, _: z * timestep / 1000)
    family = get_family("tadsr")
    ends = endpoints_of(family, unet, [high, low])
    assert family.encoder_timesteps == (500, 200)
    assert [call[2] for call in unet.calls] == [500, 200]
    assert torch.allclose(ends.z0, high / 0.52567 - high * 0.5, atol=1e-4)
    assert torch.allclose(blend(ends, 1.0), low / 0.86815 - low * 0.2, atol=1e-4)


def test_tadsr_at_one_timestep_has_no_dial():
    family = dataclasses.replace(get_family("tadsr"), encoder_timesteps=(400,))
    assert (family.timesteps, family.passes, family.has_dial) == ((400,), 1, False)
    assert endpoints_of(family, lambda z, *_: z, [randn(1, 4, 2, 2)]).delta is None


def test_pisa_runs_two_adapters_on_one_latent():
    z = randn(1, 4, 5, 3)
    outputs = {"pix": randn(1, 4, 5, 3, seed=1), "full": randn(1, 4, 5, 3, seed=2)}
    unet = Recorder(lambda z, timestep, variant: outputs[variant])
    ends = endpoints_of(get_family("pisa"), unet, [z])
    assert [call[2:] for call in unet.calls] == [(1, "full"), (1, "pix")]
    assert torch.equal(ends.z0, z - outputs["full"])
    assert torch.allclose(blend(ends, 1.0), z - outputs["pix"], atol=1e-6)
    # the paper's lambda_sem = 1 - t at lambda_pix = 1
    lambda_sem = z - (outputs["pix"] + 0.3 * (outputs["full"] - outputs["pix"]))
    assert torch.allclose(blend(ends, 0.7), lambda_sem, atol=1e-5)


def test_oftsr_starts_from_seeded_noise():
    z = randn(1, 4, 5, 3)
    unet = Recorder(lambda z, timestep, _: z[:, 4:] * 0 + timestep / 999)
    family = get_family("oftsr")
    ends = endpoints_of(family, unet, [z], torch.Generator().manual_seed(3))
    start = math.sqrt(1 - 0.2**2) * z + 0.2 * randn(1, 4, 5, 3, seed=3)
    assert [call[0] for call in unet.calls] == [(1, 8, 5, 3)] * 2
    assert [call[2] for call in unet.calls] == [999, 0]  # its own t = 1 is realistic
    assert torch.allclose(ends.z0, start + 1)
    assert torch.allclose(blend(ends, 1.0), start, atol=1e-6)
    again = endpoints_of(family, unet, [z], torch.Generator().manual_seed(3))
    assert torch.equal(ends.z0, again.z0)
    with pytest.raises(ValueError, match="generator"):
        endpoints_of(family, unet, [z])


def test_oftsr_on_an_analytic_linear_flow():
    """v = x_1 - x_0 brings x_0 to x_1 in one step."""
    z, target = randn(1, 4, 5, 3), randn(1, 4, 5, 3, seed=1)
    ends = endpoints_of(get_family("oftsr"), lambda x, *_: target - x[:, :4], [z], torch.Generator().manual_seed(0))
    assert torch.allclose(ends.z0, target, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_computes_in_fp32_from_bf16_latents(name):
    family = get_family(name)
    latents = [randn(2, 4, 5, 3).bfloat16() for _ in family.encoder_timesteps]
    unet = Recorder(lambda z, *_: z[:, :4].repeat(1, family.output_groups, 1, 1) / 3)
    ends = endpoints_of(family, unet, latents, torch.Generator().manual_seed(0))
    assert len(unet.calls) == family.passes
    assert {call[1] for call in unet.calls} == {torch.bfloat16}
    assert (ends.delta is not None) == family.has_dial
    tensors = [x for x in (ends.z0, ends.delta, ends.kappa) if x is not None]
    assert {(x.dtype, tuple(x.shape)) for x in tensors} == {(torch.float32, (2, 4, 5, 3))}


def test_table():
    table = {name: (f.passes, f.has_dial, f.needs_seed) for name, f in FAMILIES.items()}
    assert table == {
        "ctsr": (1, True, False),
        "osediff": (1, False, False),
        "tadsr": (2, True, False),
        "pisa": (2, True, False),
        "oftsr": (2, True, True),
    }
    with pytest.raises(ValueError, match="ctsr, osediff, tadsr, pisa, oftsr"):
        get_family("sinsr")


def test_endpoints_refuse_what_does_not_belong_to_the_family():
    z = randn(1, 4, 2, 2)
    with pytest.raises(ValueError, match="12 output channels"):
        endpoints_of(get_family("ctsr"), lambda z, *_: z, [z])
    with pytest.raises(ValueError, match="2 latents"):
        endpoints_of(get_family("tadsr"), lambda z, *_: z, [z])
    with pytest.raises(ValueError, match="4 output channels"):
        endpoints_of(get_family("osediff"), lambda z, *_: torch.cat([z, z], dim=1), [z])


@pytest.mark.parametrize(
    "wrong",
    [
        {"unet_timesteps": (999, 500, 1)},
        {"encoder_timesteps": (500, 200)},
        {"variants": ("pix", "full")},
        {"output_groups": 3, "unet_timesteps": (999, 1)},
        {"unet_timesteps": None},
        {"sigma": 1.0},
    ],
)
def test_a_family_checks_itself(wrong):
    with pytest.raises(ValueError, match="'mine'"):
        Family("mine", "epsilon", **wrong)


def test_a_unet_without_kappa_has_a_straight_way():
    z = randn(1, 4, 2, 2)
    ends = endpoints_of(get_family("ctsr"), lambda z, *_: torch.cat([z, 3 * z], dim=1), [z])
    assert ends.kappa is None
    torch.testing.assert_close(blend(ends, 0.25), ends.z0 + 0.75 * z)


@pytest.fixture
def ends() -> Endpoints:
    return Endpoints(*(randn(2, 4, 5, 3, seed=i) for i in range(3)))


def test_blend_is_the_formula_and_exact_at_its_ends(ends):
    t = 0.3
    assert torch.allclose(blend(ends, t), ends.z0 + t * ends.delta + t * (1 - t) * ends.kappa)
    assert torch.equal(blend(ends, 0.0), ends.z0)
    assert torch.equal(blend(ends, 1), ends.z0 + ends.delta)


def test_blend_keeps_the_bits_of_signed_zeros():
    zeros = -torch.zeros(1, 4, 2, 2)
    for t in (0.0, 1.0):
        assert torch.signbit(blend(Endpoints(zeros, zeros, zeros + 1), t)).all()


@pytest.mark.parametrize("t", [[0.2, 1.0], torch.tensor([0.2, 1.0]), torch.tensor([0.2, 1.0], dtype=torch.float64)])
def test_blend_per_picture(ends, t):
    z = blend(ends, t)
    assert torch.equal(z[0], blend(ends, 0.2)[0])
    assert torch.equal(z[1], blend(ends, 1.0)[1])


@pytest.mark.parametrize("shape", [(5, 3), (1, 1, 5, 3), (2, 1, 5, 3)])
def test_blend_by_a_map(ends, shape):
    t = torch.full(shape, 0.7)
    t[..., 0, :], t[..., 1, :] = 0, 1
    z = blend(ends, t)
    assert torch.equal(z[:, :, 0], ends.z0[:, :, 0])
    assert torch.equal(z[:, :, 1], (ends.z0 + ends.delta)[:, :, 1])
    assert torch.equal(z[:, :, 2:], blend(ends, 0.7)[:, :, 2:])


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, math.inf, [0.5, math.nan], torch.full((5, 3), 2.0)])
def test_blend_refuses_t_outside_its_range(ends, t):
    with pytest.raises(ValueError, match=r"^t .*: give a number from 0 \(most realistic\) to 1 \(most faithful\)\.$"):
        blend(ends, t)


@pytest.mark.parametrize("t", [0, 1, 0.0, 0.5, 1.0, [0, 1], torch.rand(4, 4)])
def test_the_dial_goes_from_0_to_1(t):
    check_dial("t", t)


@pytest.mark.parametrize("t", [-1e-9, 1.0000001, 9, math.nan, math.inf, "0.5", None, [0, 2], torch.tensor([0, 2.0])])
def test_a_dial_outside_is_refused_by_its_name(t):
    with pytest.raises(ValueError, match=r"^t_inside (is|has values from) [^\n]*: give a number from 0 \(most"):
        check_dial("t_inside", t)


@pytest.mark.parametrize("shape", [(3,), (1, 2), (3, 5), (5, 3, 1), (2, 4, 5, 3), (3, 1, 5, 3)])
def test_blend_refuses_t_of_another_shape(ends, shape):
    with pytest.raises(ValueError, match=r"^t must be .*\[5, 3\]"):
        blend(ends, torch.full(shape, 0.5))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.has_dial])
def test_the_dial_goes_from_realistic_to_faithful(name):
    """A UNet that adds texture of strength 1 in its realistic output and none in its faithful one."""
    family = get_family(name)
    texture = randn(1, 4, 8, 8)
    realistic = {"ctsr": 999, "tadsr": 500, "oftsr": 999}

    def predict(z: Tensor, timestep: int, variant: str | None) -> Tensor:
        if name == "ctsr":
            _, b = coefficients("epsilon", 999)
            return torch.cat([texture / b, -texture, texture * 0], dim=1)
        return texture * float(variant == "full" or timestep == realistic.get(name))

    latents = [torch.zeros(1, 4, 8, 8)] * len(family.encoder_timesteps)
    flow = endpoints_of(family, predict, latents, torch.Generator().manual_seed(1))
    start = blend(flow, 1.0)
    strengths = [(blend(flow, t) - start).square().mean().item() for t in (0, 0.25, 0.5, 0.75, 1)]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths[0] > 0.5
    assert strengths[-1] == 0
