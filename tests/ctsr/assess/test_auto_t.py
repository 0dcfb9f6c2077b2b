"""Automatic t: the same for the same picture, by place, as tuned, and raised where a realistic end would depart."""

import logging
import re

import pytest
import torch
import torch.nn.functional as F

from ctsr.assess import auto_t, tuned
from ctsr.assess.auto_t import Choice, choose_t, in_words, traits
from ctsr.assess.places import MARGIN, check_places, least_t, where_to_look
from ctsr.images.tensors import pad, resize
from tests.ctsr.assess.conftest import camera

ENDS = ", where 0 invents detail and 1 keeps to the picture"


def follow(monkeypatch, *, out: float, bias: float = 0.0, **weights: float):
    """Automatic t with one hidden unit that follows the named features, as `tuned` names them with _ for spaces."""
    row = tuple(weights.get(name.replace(" ", "_"), 0.0) for name in tuned.FEATURES)
    monkeypatch.setattr(tuned, "HIDDEN", ((*row, 0.0),))
    monkeypatch.setattr(tuned, "OUT", (out,))
    monkeypatch.setattr(tuned, "BIAS", bias)


def test_traits_tell_noise_and_texture_apart(scene):
    clean, noisy = traits(camera(scene, 1 / 255)), traits(camera(scene, 10 / 255))
    assert noisy.noise > 5 * clean.noise
    smooth = scene.clone()
    smooth[..., 256:] = 0.5
    assert traits(camera(smooth, 1 / 255)).texture < clean.texture - 0.2


def test_noise_moves_t_the_way_it_is_tuned_and_is_named(scene, monkeypatch):
    follow(monkeypatch, out=-1.0, noise=1.0)
    clean, noisy = choose_t(camera(scene, 0.5 / 255)), choose_t(camera(scene, 10 / 255))
    assert noisy.t < clean.t
    assert any(
        re.fullmatch(r"more grain than usual \(σ \d+\.\d of 255, not 1\.8\): t 0\.\d\d lower", line)
        for line in noisy.reasons
    )
    assert noisy.reasons[-1].startswith(f"t = {noisy.t:g} on average")


def test_a_reason_is_the_change_of_t_that_its_feature_makes(scene, monkeypatch):
    follow(monkeypatch, out=1.5, noise=0.8, brightness=-0.5, contrast=0.6)
    picture = camera(scene, 8 / 255)
    here, (reason,) = choose_t(picture), [line for line in choose_t(picture).reasons if "grain" in line]
    monkeypatch.setattr(tuned, "HIDDEN", ((0.0, *tuned.HIDDEN[0][1:]),))
    usual = choose_t(picture).t
    assert float(re.findall(r": t (\d\.\d+)", reason)[0]) == pytest.approx(here.t - usual, abs=0.02)


def test_places_of_contrast_get_another_t_than_smooth_ones_and_a_line_says_so(scene, monkeypatch):
    follow(monkeypatch, out=2.0, contrast=1.0)
    picture = camera(scene, 0.5 / 255)  # the left half has no texture
    choice = choose_t(picture)
    assert choice.t_map is not None
    assert choice.t_map.shape == (128, 128)
    assert choice.t == pytest.approx(float(choice.t_map.mean()), abs=0.005)
    assert float(choice.t_map[:, 80:].mean()) > float(choice.t_map[:, :50].mean()) + 0.1
    smooth, strong = map(float, re.findall(r"t = (0\.\d\d)", choice.reasons[0]))
    assert strong > smooth + 0.1


def test_a_picture_that_is_like_others_names_nothing_else(photo, monkeypatch):
    follow(monkeypatch, out=0.0)
    assert choose_t(photo).reasons == ("its contrast is even: about the same t everywhere", "t = 0.5 on average" + ENDS)


def test_only_what_is_unusual_is_a_reason_and_the_strongest_come_first(scene, monkeypatch):
    follow(monkeypatch, out=2.0, noise=0.5, blur=0.7, texture=1.2, brightness=1.0)
    monkeypatch.setattr(auto_t, "blur", lambda picture, noise: None)
    told = [line for line in choose_t(camera(scene, 8 / 255)).reasons if line.endswith(("higher", "lower"))]
    changes = [float(line.split()[-2]) for line in told]
    assert len(told) >= 2
    assert changes == sorted(changes, reverse=True)
    assert "no clear edges" in " ".join(told)
    monkeypatch.setattr(auto_t, "REASONS", 1)
    assert [line for line in choose_t(camera(scene, 8 / 255)).reasons if line.endswith(("higher", "lower"))] == told[:1]
    as_usual = traits(scene)
    monkeypatch.setattr(tuned, "MEAN", (*as_usual.features, *tuned.MEAN[5:]))
    assert not [line for line in choose_t(scene).reasons if line.endswith(("higher", "lower"))]


def test_every_difference_has_words_and_no_squares_are_no_reason():
    found = traits(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    said = [in_words(found, feature, more) for feature in tuned.FEATURES[:5] for more in (True, False)]
    assert said.count("") == 1
    assert len(set(said)) == len(said)
    assert in_words(found, "blocks", False) == ""


def test_contrast_in_strips_is_that_of_the_whole(scene, monkeypatch):
    whole = auto_t.contrast(scene)
    monkeypatch.setattr(auto_t, "STRIP", 96)
    assert torch.allclose(auto_t.contrast(scene), whole, atol=1e-4)
    assert float(whole[0, :, :200].mean()) < float(whole[0, :, 300:].mean()) - 0.5


@pytest.mark.parametrize("picture", [torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 1, 1), torch.rand(1, 3, 64, 9)])
def test_any_picture_has_a_t(picture):
    choice = choose_t(picture)
    assert 0 <= choice.t <= 1
    assert choice.t_map is not None
    assert choice.t_map.shape == picture.shape[-2:]
    assert torch.isfinite(choice.t_map).all()


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
    choice = check_places(photo, Choice(0.2, ("noisy", "t = 0.2 on average")), 2 / 255, delta, factor, size, decode)
    assert choice.t_map is not None
    assert choice.t_map.shape == (64, 64)
    assert float(choice.t_map[30, 18]) > 0.9
    assert float(choice.t_map[:, 50:].max()) == pytest.approx(0.2)
    assert choice.reasons[0] == "noisy"
    assert "around x 144, y 240" in choice.reasons[1]
    assert choice.t == pytest.approx(float(choice.t_map.mean()), abs=0.005)
    assert choice.reasons[-1] == f"t = {choice.t:g} on average{ENDS}"

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
    assert any("on average" in reason for reason in choice.reasons)
    assert choice.reasons[0] in caplog.text
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


def test_the_tuned_file_fits_its_features():
    assert len(tuned.FEATURES) == len(tuned.MEAN) == len(tuned.DEVIATION)
    assert all(len(row) == len(tuned.FEATURES) + 1 for row in tuned.HIDDEN)
    assert len(tuned.OUT) == len(tuned.HIDDEN)
    assert all(deviation > 0 for deviation in tuned.DEVIATION)


def test_a_place_that_has_a_high_t_already_is_not_raised(scene, photo):
    factor, size = 8, (512, 512)
    delta = torch.full((1, 4, 64, 64), 0.01)
    delta[..., 24:36, 12:24] = 1
    t_map = torch.full((128, 128), 0.2)
    t_map[40:80, 16:56] = 1.0

    def decode(place):
        top, left, side = (factor * value for value in place)
        faithful = scene[..., top : top + side, left : left + side]
        strange = top == 24 * factor and left == 12 * factor
        return faithful.flip(-1) if strange else faithful, faithful

    assert check_places(photo, Choice(0.2, ("",), t_map), 2 / 255, delta, factor, size, decode).t_map is t_map
    low = Choice(0.2, ("",), torch.full_like(t_map, 0.2))
    assert check_places(photo, low, 2 / 255, delta, factor, size, decode).t_map is not low.t_map
