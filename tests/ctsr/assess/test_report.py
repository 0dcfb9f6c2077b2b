"""The fidelity report finds each fault that was put into a result, where it is, and nothing where there is none."""

import pytest
import torch

from ctsr.assess.camera import fit_camera
from ctsr.assess.report import report
from ctsr.assess.windows import gaussian
from ctsr.images.inputs import from_pil
from ctsr.images.tensors import as_pil, resize
from tests.ctsr.assess.conftest import camera


def kinds(found) -> set[str]:
    return {finding.kind for finding in found.findings}


def box_of(found, kind: str) -> tuple[int, int, int, int]:
    return next(finding.box for finding in found.findings if finding.kind == kind)


def test_the_camera_is_fitted_as_it_was(scene, photo):
    fitted = fit_camera(photo, scene)
    assert fitted.blur == pytest.approx(0.5, abs=0.05)
    assert float(fitted.kernel.sum()) == pytest.approx(1, abs=1e-5)
    assert 255 * float(fitted.residual.std()) == pytest.approx(2, abs=0.2)
    assert max(abs(255 * value) for value in fitted.cast) < 0.1
    assert max(abs(value) for value in fitted.shift) < 0.02


def test_a_thing_that_does_not_belong_there_does_not_bend_the_camera(scene, photo):
    scene = scene.clone()
    scene[..., 100:200, 100:200] = 0.9
    assert fit_camera(photo, scene).blur == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("scale", [1, 2, 3.3, 4])
def test_quiet_on_the_inputs_own_bicubic(photo, scale):
    found = report(photo, resize(photo, round(128 * scale), round(128 * scale)).clamp(0, 1))
    assert found.findings == []
    assert found.departure < 0.5
    assert found.added < 0.05


def test_quiet_on_the_ground_truth(scene, photo):
    found = report(photo, scene)
    assert kinds(found) == set()
    assert found.departure == pytest.approx(1, abs=0.2)


def test_finds_a_pasted_object_where_it_is(scene, photo):
    result = scene.clone()
    result[..., 320:380, 60:140] = scene[..., 20:80, 400:480].flip(-1) * 0.7
    found = report(photo, result)
    left, top, right, bottom = box_of(found, "foreign")
    assert abs(left - 60) <= 24
    assert abs(top - 320) <= 24
    assert abs(right - 140) <= 24
    assert abs(bottom - 380) <= 24
    assert float(found.added_map[..., 320:380, 60:140].mean()) > float(found.added_map[..., :250, :200].mean())


def test_finds_invented_text(scene, photo):
    from PIL import ImageDraw, ImageFont

    image = as_pil(scene)
    ImageDraw.Draw(image).text((150, 230), "invented", fill=(20, 20, 20), font=ImageFont.load_default(22))
    assert "foreign" in kinds(report(photo, from_pil(image)))


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1, 1])
def test_finds_a_cast_of_two_levels_and_names_its_channel(scene, photo, channel, sign):
    result = scene.clone()
    result[:, channel] += sign * 2 / 255
    found = report(photo, result)
    assert kinds(found) == {"cast"}
    assert 255 * found.camera.cast[channel] == pytest.approx(2 * sign, abs=0.2)


def test_finds_a_seam_of_one_level_and_its_place(scene, photo):
    result = scene.clone()
    result[..., 256:] += 1 / 255
    found = report(photo, result)
    assert kinds(found) == {"seam"}
    assert found.seams[0].vertical
    assert abs(found.seams[0].place - 64) <= 2
    assert 255 * found.seams[0].step == pytest.approx(1, abs=0.3)
    assert abs(box_of(found, "seam")[0] - 256) <= 8


@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, -1), (-2, 1)])
def test_finds_a_shift_its_direction_and_nothing_else(scene, photo, across, down):
    found = report(photo, scene.roll((down, across), (-2, -1)))
    assert kinds(found) == {"shift"}
    assert found.shift[0] == pytest.approx(across, abs=0.3)
    assert found.shift[1] == pytest.approx(down, abs=0.3)


@pytest.mark.parametrize("radius", [2, 4])
def test_finds_over_sharpening(scene, photo, radius):
    sharpened = (scene + 2 * (scene - gaussian(scene, radius))).clamp(0, 1)
    assert "sharpened" in kinds(report(photo, sharpened, faithful=scene))


def test_lines_that_are_sharper_than_in_a_blurred_input_are_no_halos_but_halos_of_edges_are():
    wires = torch.full((1, 3, 512, 512), 0.6)
    wires[..., 20::40, :] = wires[..., 21::40, :] = 0.1
    steps = torch.full((1, 3, 512, 512), 0.3)
    steps[..., 256:, :] = steps[..., :, 256:] = 0.7
    for truth, expected in ((wires, set[str]()), (steps, {"sharpened"})):
        blurred = resize(gaussian(truth, 4), 128, 128)
        assert kinds(report(blurred, truth)) == set()
        sharpened = (truth + 2 * (truth - gaussian(truth, 4))).clamp(0, 1)
        assert kinds(report(resize(truth, 128, 128), sharpened)) & {"sharpened"} == expected


def test_halos_are_not_called_seams(scene, photo):
    sharpened = (scene + 2 * (scene - gaussian(scene, 4))).clamp(0, 1)
    sharpened[..., 256:] += 1 / 255
    found = report(photo, sharpened, faithful=scene)
    assert "sharpened" in kinds(found)
    assert "seam" not in kinds(found)


def test_finds_smoothed_texture_and_where(scene, photo):
    result = scene.clone()
    result[..., 300:460, 320:480] = gaussian(scene, 8)[..., 300:460, 320:480]
    left, top, right, bottom = box_of(report(photo, result), "plastic")
    assert left >= 280
    assert top >= 260
    assert right <= 512
    assert bottom <= 500


def test_finds_what_is_newly_white(scene, photo):
    result = scene.clone()
    result[..., 40:200, 40:200] = 1.0
    assert "clipped" in kinds(report(photo, result))


def test_maps_have_the_sizes_that_the_docstring_names(scene, photo):
    found = report(photo, scene, faithful=resize(photo, 512, 512))
    assert found.departure_map.shape == (1, 1, 128, 128)
    assert found.lost_map.shape == (1, 1, 128, 128)
    assert found.added_map.shape == (1, 1, 512, 512)
    assert 0 <= float(found.added_map.min()) <= float(found.added_map.max()) <= 1


def test_the_same_twice(scene, photo):
    first, second = report(photo, scene), report(photo, scene)
    assert torch.equal(first.departure_map, second.departure_map)
    assert first.camera.cast == second.camera.cast


def test_noise_that_is_strong_hides_a_small_object_but_no_large_one(scene):
    result = scene.clone()
    result[..., 100:240, 100:240] = 0.1
    assert "foreign" in kinds(report(camera(scene, 12 / 255), result))


@pytest.mark.parametrize(
    ("size", "message"), [((64, 64), "smaller than its input"), ((512, 256), "neither cropped nor rotated")]
)
def test_pictures_that_do_not_belong_together_are_refused(photo, size, message):
    with pytest.raises(ValueError, match=message):
        report(photo, torch.rand(1, 3, *size))


def test_a_picture_of_one_pixel_has_a_report():
    found = report(torch.rand(1, 3, 1, 1), torch.rand(1, 3, 4, 4))
    assert found.seams == []
