"""Automatic t: the same for the same picture, moved by what is tuned, and raised where a realistic end would depart."""

import logging

import pytest
import torch
import torch.nn.functional as F

from ctsr.assess import auto_t, tuned
from ctsr.assess.auto_t import Choice, choose_t, traits
from ctsr.assess.places import MARGIN, check_places, least_t, where_to_look
from ctsr.images.tensors import pad, resize
from tests.ctsr.assess.conftest import camera


def test_traits_tell_noise_and_texture_apart(scene):
    clean, noisy = traits(camera(scene, 1 / 255)), traits(camera(scene, 10 / 255))
    assert noisy.noise > 5 * clean.noise
    assert len(clean.features) == len(tuned.FEATURES) == len(tuned.MEAN) == len(tuned.DEVIATION) == len(tuned.WEIGHT)
    smooth = scene.clone()
    smooth[..., 256:] = 0.5
    assert traits(camera(smooth, 1 / 255)).texture < clean.texture - 0.2


def test_noise_moves_t_the_way_it_is_tuned_and_is_named(scene, monkeypatch):
    monkeypatch.setattr(tuned, "WEIGHT", (-1.0, 0.0, 0.0, 0.0))
    clean, noisy = choose_t(camera(scene, 0.5 / 255)), choose_t(camera(scene, 10 / 255))
    assert noisy.t < clean.t
    assert any(reason.startswith("noise σ ") and "more realistic" in reason for reason in noisy.reasons)
    assert noisy.reasons[-1] == f"so t = {noisy.t:g}"


def test_a_picture_that_is_like_others_says_so(photo, monkeypatch):
    monkeypatch.setattr(tuned, "WEIGHT", (0.0,) * 4)
    assert choose_t(photo).reasons[0] == "nothing stands out: the usual t"


@pytest.mark.parametrize("picture", [torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 1, 1), torch.rand(1, 3, 64, 9)])
def test_any_picture_has_a_t(picture):
    assert 0 <= choose_t(picture).t <= 1


def test_least_t_is_the_blend_that_no_longer_departs():
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    r1 = torch.zeros_like(noise)
    assert least_t(r1, r1, 0.3, 0.0) == 0.3
    assert least_t(r1 + 0.2 * noise, r1, 0.3, 0.0) > 0.9
    middle = least_t(r1 + 0.02 * noise, r1, 0.0, 4 / 255)
    assert 0 < middle < 1


def test_places_are_where_the_ends_differ_most_and_few():
    delta = torch.zeros(1, 4, 96, 96)
    delta[..., 60:72, 36:48] = 1
    places = where_to_look(delta, 12)
    assert places[0] == (60, 36, 12)
    assert len(places) * (12 + 2 * MARGIN) ** 2 <= 0.15 * 96 * 96
    assert where_to_look(torch.zeros(1, 4, 8, 8), 12) == []


def test_t_is_raised_where_the_realistic_end_departs_and_nowhere_else(scene, photo):
    factor, truth = 8, scene
    delta = torch.full((1, 4, 64, 64), 0.01)
    delta[..., 24:36, 12:24] = 1

    def decode(place):
        top, left, side = (factor * value for value in place)
        faithful = truth[..., top : top + side, left : left + side]
        return faithful.flip(-1), faithful  # the realistic end shows something else

    size = (512, 512)
    choice = check_places(photo, Choice(0.2, ("noisy",)), 2 / 255, delta, factor, size, decode)
    assert choice.t_map is not None
    assert choice.t_map.shape == (64, 64)
    assert float(choice.t_map[30, 18]) > 0.9
    assert float(choice.t_map[:, 50:].max()) == pytest.approx(0.2)
    assert choice.reasons[0] == "noisy"
    assert "around x 144, y 240" in choice.reasons[1]

    same = check_places(photo, Choice(0.2, ()), 2 / 255, delta, factor, size, lambda place: decode(place)[1:] * 2)
    assert same.t_map is None


def test_padding_behind_the_result_moves_no_place(scene, photo):
    factor, size = 8, (500, 436)
    truth = F.interpolate(scene, size=size, mode="bilinear", antialias=True)
    small = F.interpolate(truth, size=(125, 109), mode="area")
    delta = torch.full((1, 4, 72, 64), 0.01)  # 63 x 55 latents and their padding, where the ends differ most
    delta[..., 24:36, 12:24] = 1
    delta[..., 63:, :] = delta[..., 55:] = 9

    def decode(place):
        top, left, side = (factor * value for value in place)
        faithful = pad(truth, factor)[..., top : top + side, left : left + side]
        return faithful.flip(-1), faithful

    choice = check_places(small, Choice(0.2, ()), 2 / 255, delta, factor, size, decode)
    assert choice.t_map is not None
    assert choice.t_map.shape == (63, 55)
    assert float(choice.t_map[30, 18]) > 0.8
    assert float(choice.t_map[:, 45:].max()) == pytest.approx(0.2)
    same = check_places(small, Choice(0.2, ()), 2 / 255, delta, factor, size, lambda place: decode(place)[1:] * 2)
    assert same.t_map is None


def test_the_pipeline_chooses_tells_why_and_is_deterministic(tiny_mini, photo, caplog):
    with caplog.at_level(logging.INFO, "ctsr.pipeline"):
        first = tiny_mini(photo, t="auto", output_type="pt")
    second = tiny_mini(photo, t="auto", output_type="pt")
    assert torch.equal(first.images, second.images)
    assert first.choices is not None
    (choice,) = first.choices
    assert any("so t = " in reason for reason in choice.reasons)
    assert choice.reasons[0] in caplog.text
    if choice.t_map is None:
        assert torch.equal(first.images, tiny_mini(photo, t=choice.t, output_type="pt").images)
    else:
        assert torch.equal(first.images, tiny_mini(photo, t_map=choice.t_map, output_type="pt").images)
    assert tiny_mini(photo, t=0.5).choices is None


def test_each_picture_of_a_batch_has_its_own_choice(tiny_mini, photo):
    batch = torch.cat([photo, resize(photo[..., :8, :8], 128, 128).clamp(0, 1)])
    choices = tiny_mini(batch, t="auto", output_type="pt").choices
    assert [choice.t for choice in choices] == [choose_t(batch[:1]).t, choose_t(batch[1:]).t]


def test_another_word_than_auto_is_refused(tiny_mini, photo):
    with pytest.raises(ValueError, match="or \"auto\", not 'best'"):
        tiny_mini(photo, t="best")


def test_a_model_without_a_dial_says_so(make_sd, photo):
    output = make_sd("osediff")(photo[..., :32, :32], t="auto", output_type="pt")
    assert "no dial" in output.choices[0].reasons[0]


def test_the_tuned_file_is_what_the_module_reads():
    assert auto_t.tuned is tuned
    assert all(deviation > 0 for deviation in tuned.DEVIATION)
