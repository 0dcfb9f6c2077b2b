"""GroupNorm by statistics from outside: the same numbers as GroupNorm of the whole."""

import pytest
import torch
from torch import Tensor, nn

from ctsr.tiling.sd_vae import statistics
from ctsr.tiling.sd_vae.statistics import GivenStatistics, Moments, Survey, carry, measure, normalise, pool

GROUPS, CHANNELS = 4, 12


@pytest.fixture
def picture() -> Tensor:
    """[1, C, 16, 24] whose left and right differ, far from zero mean."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, CHANNELS, 16, 24, generator=generator)
    x[..., 12:] = 5 * x[..., 12:] + 3
    return x + 10


@pytest.fixture
def norm() -> nn.GroupNorm:
    torch.manual_seed(1)
    norm = nn.GroupNorm(GROUPS, CHANNELS).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    return norm


def whole(rows: int, columns: int) -> tuple[slice, slice]:
    return slice(0, rows), slice(0, columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_measure(picture, dtype, memory_format):
    x = picture.to(dtype).contiguous(memory_format=memory_format)
    met, grouped = measure(x[0], GROUPS), x[0].double().reshape(GROUPS, -1)
    torch.testing.assert_close(met.mean, grouped.mean(1).float())
    torch.testing.assert_close(met.var, grouped.var(1, correction=0).float(), rtol=1e-4, atol=0)


def test_measuring_a_few_groups_at_a_time_is_the_same(picture, monkeypatch):
    expected = measure(picture[0], GROUPS)
    for values in (1, 3 * picture[0, :3].numel()):
        monkeypatch.setattr(statistics, "VALUES_AT_ONCE", values)
        met = measure(picture[0], GROUPS)
        assert torch.equal(met.mean, expected.mean)
        assert torch.equal(met.var, expected.var)


def test_moments_of_parts_pool_to_those_of_the_whole(picture):
    parts = [picture[0, :, :5], picture[0, :, 5:, :7], picture[0, :, 5:, 7:]]
    pooled, together = pool([measure(part, GROUPS) for part in parts]), measure(picture[0], GROUPS)
    assert pooled.area == together.area
    torch.testing.assert_close(pooled.mean, together.mean)
    torch.testing.assert_close(pooled.var, together.var)


def test_a_constant_has_no_variance():
    met = measure(torch.full((CHANNELS, 8, 8), 7.0), GROUPS)
    assert met.var.abs().max() < 1e-9


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_tiles_by_the_whole_picture_s_statistics_are_tiles_of_the_whole(picture, norm, dtype, tolerance):
    x, norm = picture.to(dtype), norm.to(dtype)
    moments = measure(x[0], GROUPS)
    for tile in (x[..., :7], x[..., 7:]):
        y = normalise(norm, tile, moments)
        assert y.dtype == dtype
        expected = norm(x)[..., :7] if tile.shape[-1] == 7 else norm(x)[..., 7:]
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    assert (norm(x[..., :7]) - norm(x)[..., :7]).abs().max() > 0.5  # by themselves they are not


def test_each_norm_has_statistics_of_its_own(picture, norm):
    other = nn.GroupNorm(GROUPS, CHANNELS).requires_grad_(False)
    given = GivenStatistics(
        {other: Moments(1, torch.zeros(GROUPS), torch.ones(GROUPS)), norm: measure(picture[0], GROUPS)}
    )
    torch.testing.assert_close(given(norm, picture), norm(picture), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given(other, picture), picture, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_sample_that_is_the_whole_picture_gives_its_statistics(picture, norm, scale):
    """In a batch of two halves."""
    size = 16 // scale, 12 // scale
    survey = Survey(size, [(whole(*size), 1.0)] * 2, lambda _, met: met)
    y = torch.cat(list(survey(norm, torch.cat(picture.split(12, dim=-1))).split(1)), dim=-1)
    torch.testing.assert_close(y, norm(picture), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(survey.met[norm].var, measure(picture[0], GROUPS).var)
    assert survey.used == survey.met


def test_margins_and_weights_count(picture, norm):
    boxes = [((slice(2, 16), slice(0, 9)), 0.5), ((slice(0, 16), slice(3, 12)), 2.0)]
    survey = Survey((16, 12), boxes, lambda _, met: met)
    survey(norm, torch.cat(picture.split(12, dim=-1)))
    left, right = measure(picture[0, :, 2:, :9], GROUPS), measure(picture[0, :, :, 15:], GROUPS)
    share = 0.5 * left.area / (0.5 * left.area + 2 * right.area)
    torch.testing.assert_close(survey.met[norm].mean, share * left.mean + (1 - share) * right.mean)


@pytest.fixture
def halves(picture: Tensor) -> list[Tensor]:
    """Flat and textured."""
    return list(picture.split(12, dim=-1))


def test_a_survey_measures_under_what_it_is_given(picture, norm, halves):
    given, box = Moments(1, torch.zeros(GROUPS), torch.ones(GROUPS)), ((slice(2, 16), slice(0, 9)), 1)
    survey = Survey((16, 12), [box], lambda *_: given)
    torch.testing.assert_close(survey(norm, halves[0]), normalise(norm, halves[0], given))
    expected = measure(picture[0, :, 2:, :9], GROUPS)
    torch.testing.assert_close(survey.met[norm].mean, expected.mean)
    torch.testing.assert_close(survey.met[norm].var, expected.var)
    assert survey.used == {norm: given}


def test_correction_is_exact_where_groups_are_only_scaled_and_shifted(picture, halves):
    """A half is the sample. Its first statistics are far off; the survey's second ones are those under the first."""
    first, second = (nn.GroupNorm(GROUPS, CHANNELS).requires_grad_(False) for _ in range(2))

    def run(survey: Survey, x: Tensor) -> Survey:
        survey(second, 2 * survey(first, x) + 1)
        return survey

    half, full = [(whole(16, 12), 1)], [(whole(16, 24), 1)]
    exact = run(Survey((16, 24), full, lambda _, met: met), picture).met
    sampled = run(Survey((16, 12), half, lambda _, met: met), halves[1]).met
    met = run(Survey((16, 24), full, lambda norm, _: sampled[norm]), picture).met
    corrected = run(
        Survey((16, 12), half, lambda norm, now: carry(met[norm], sampled[norm], now)),
        halves[1],
    ).used
    for norm, moments in exact.items():
        torch.testing.assert_close(corrected[norm].mean, moments.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(corrected[norm].var, moments.var, rtol=1e-3, atol=1e-4)
    assert (met[second].var / exact[second].var - 1).abs().max() > 0.1  # not without


def test_flat_parts_carry_nothing_over():
    flat = Moments(1, torch.zeros(GROUPS), torch.full((GROUPS,), 1e-12))
    noisier = Moments(1, torch.zeros(GROUPS), torch.full((GROUPS,), 4e-12))
    kept = carry(Moments(7, torch.ones(GROUPS), torch.ones(GROUPS)), flat, noisier)
    torch.testing.assert_close(kept.var, torch.ones(GROUPS))
    torch.testing.assert_close(kept.mean, torch.ones(GROUPS))
