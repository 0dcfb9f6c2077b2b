"""GroupNorm by statistics from outside: the same numbers as GroupNorm of the whole, in this thread only."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctsr.tiling.sd_vae import group_norm
from ctsr.tiling.sd_vae.group_norm import (
    CorrectingGroupNorm,
    MeasuringGroupNorm,
    Moments,
    SharedGroupNorm,
    Statistics,
    SurveyingGroupNorm,
    carried,
    measure,
    pool,
)

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
        monkeypatch.setattr(group_norm, "MEASURED", values)
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
    statistics = [measure(x[0], GROUPS)]
    for tile in (x[..., :7], x[..., 7:]):
        with SharedGroupNorm(statistics):
            y = norm(tile)
        assert y.dtype == dtype
        expected = norm(x)[..., :7] if tile.shape[-1] == 7 else norm(x)[..., 7:]
        torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    assert (norm(x[..., :7]) - norm(x)[..., :7]).abs().max() > 0.5  # by themselves they are not


def test_norms_are_told_apart_by_the_order_of_calls(picture, norm):
    other = Moments(1, torch.zeros(GROUPS), torch.ones(GROUPS))
    with SharedGroupNorm([measure(picture[0], GROUPS), other]):
        first, second = norm(picture), norm(picture)
    torch.testing.assert_close(first, norm(picture), rtol=1e-5, atol=1e-5)
    affine = picture * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(second, affine, rtol=1e-4, atol=1e-4)


def test_attention_s_flat_input(picture, norm):
    flat = picture.flatten(2)
    statistics: Statistics = []
    with MeasuringGroupNorm(statistics, (16, 24), [(whole(16, 24), 1.0)]):
        y = norm(flat)
    torch.testing.assert_close(y, norm(flat), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_sample_that_is_the_whole_picture_gives_its_statistics(picture, norm, scale):
    """In two batches of two halves: the second knows all."""
    halves = list(picture.split(12, dim=-1))
    cells = (16 // scale, 12 // scale)
    statistics: Statistics = []
    results: list[Tensor] = []
    for half in halves:
        with MeasuringGroupNorm(statistics, cells, [(whole(*cells), 1.0)]):
            results.append(norm(half))
    torch.testing.assert_close(results[1], norm(picture)[..., 12:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(statistics[0].var, measure(picture[0], GROUPS).var)


def test_margins_and_weights_count(picture, norm):
    statistics: Statistics = []
    boxes = [((slice(2, 16), slice(0, 9)), 0.5), ((slice(0, 16), slice(3, 12)), 2.0)]
    with MeasuringGroupNorm(statistics, (16, 12), boxes):
        norm(torch.cat(picture.split(12, dim=-1)))
    left, right = measure(picture[0, :, 2:, :9], GROUPS), measure(picture[0, :, :, 15:], GROUPS)
    share = 0.5 * left.area / (0.5 * left.area + 2 * right.area)
    torch.testing.assert_close(statistics[0].mean, share * left.mean + (1 - share) * right.mean)


@pytest.fixture
def halves(picture: Tensor) -> list[Tensor]:
    """Flat and textured."""
    return list(picture.split(12, dim=-1))


def test_a_survey_measures_under_what_it_is_given(picture, norm, halves):
    given, box = [Moments(1, torch.zeros(GROUPS), torch.ones(GROUPS))], ((slice(2, 16), slice(0, 9)), 1)
    with SurveyingGroupNorm(given, (16, 12), [box]) as norms:
        y = norm(halves[0])
    with SharedGroupNorm(given):
        torch.testing.assert_close(y, norm(halves[0]))
    expected = measure(picture[0, :, 2:, :9], GROUPS)
    torch.testing.assert_close(norms.met[0].mean, expected.mean)
    torch.testing.assert_close(norms.met[0].var, expected.var)


def test_correction_is_exact_where_groups_are_only_scaled_and_shifted(picture, halves):
    """A half is the sample. Its first statistics are far off; the survey's second ones are those under the first."""
    norm = nn.GroupNorm(GROUPS, CHANNELS, affine=False)

    def network(x: Tensor) -> Tensor:
        return norm(2 * norm(x) + 1)

    sampled, whole_ones, box = [], [], [(whole(16, 12), 1)]
    with MeasuringGroupNorm(whole_ones, (16, 24), [(whole(16, 24), 1)]):
        network(picture)
    with MeasuringGroupNorm(sampled, (16, 12), box) as first:
        network(halves[1])
    with SurveyingGroupNorm(sampled, (16, 24), [(whole(16, 24), 1)]) as survey:
        network(picture)
    with CorrectingGroupNorm(survey.met, first.met, (16, 12), box) as norms:
        network(halves[1])
    for index, exact in enumerate(whole_ones):
        torch.testing.assert_close(norms.corrected[index].mean, exact.mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norms.corrected[index].var, exact.var, rtol=1e-3, atol=1e-4)
    assert (survey.met[1].var / whole_ones[1].var - 1).abs().max() > 0.1  # not without


def test_flat_parts_carry_nothing_over():
    flat = Moments(1, torch.zeros(GROUPS), torch.full((GROUPS,), 1e-12))
    noisier = Moments(1, torch.zeros(GROUPS), torch.full((GROUPS,), 4e-12))
    kept = carried(Moments(7, torch.ones(GROUPS), torch.ones(GROUPS)), flat, noisier)
    torch.testing.assert_close(kept.var, torch.ones(GROUPS))
    torch.testing.assert_close(kept.mean, torch.ones(GROUPS))


def test_other_threads_and_later_calls_are_left_alone(picture, norm):
    expected, seen = norm(picture), []
    with SharedGroupNorm([Moments(1, torch.zeros(GROUPS), torch.ones(GROUPS))]):
        thread = threading.Thread(target=lambda: seen.append(norm(picture)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], expected)
    assert torch.equal(norm(picture), expected)
    assert norm.forward.__func__ is nn.GroupNorm.forward
    assert F.group_norm(picture, GROUPS).shape == picture.shape
