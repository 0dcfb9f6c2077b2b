"""Stage 1: for a few steps, from every kind of teacher, in every form; what moves, and what comes out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline
from ctsr.families import alpha_bar
from training.data.pairs import paired_photos
from training.engine.sources import Sample
from training.losses.perceptual import NoDistance
from training.losses.realism import Realism
from training.losses.reconstruction import Reconstruction
from training.losses.vsd import VSD, add_noise
from training.model.lora import unet_targets, vae_targets
from training.model.one_step import OneStep, open_pipeline
from training.stages import stage1
from training.stages.stage import train
from training.stages.stage1 import Distillation, DualTeacher
from training.stages.teachers import Faithful, plain_latents

Moved = Callable[[CTSRPipeline, CTSRPipeline, str], set[str]]
Reload = Callable[[Path], CTSRPipeline]


@pytest.fixture
def mini(on_tiny_files: Callable[..., stage1.Recipe]) -> stage1.Recipe:
    return on_tiny_files(stage1.MINI, "mini")


@pytest.fixture
def sd21(on_tiny_files: Callable[..., stage1.Recipe], sd_folder: Path) -> stage1.Recipe:
    """LPIPS needs weights that cannot be had here."""
    return replace(
        on_tiny_files(stage1.SD21, "sd"),
        autoencoder=str(sd_folder),
        reconstruction=replace(stage1.SD21.reconstruction, perceptual=0.0, features="none"),
    )


def dual_teacher(make_mini: Callable[..., CTSRPipeline], settings: Distillation, pictures: bool = False) -> DualTeacher:
    realistic, faithful = (OneStep(make_mini(seed)).requires_grad_(False) for seed in (0, 7))
    network = None if pictures else faithful
    return DualTeacher(settings, realistic, Faithful(network, realistic.vae), realistic.vae, seed=0)


def test_mini(mini: stage1.Recipe, moved: Moved, reload: Reload) -> None:
    """The UNet learns; the autoencoder is the lineage's common one."""
    train(stage1.build, mini)
    before, after = open_pipeline(mini.start), reload(mini.run.out)
    assert after.config["family"] == "ctsr"
    assert moved(before, after, "vae") == set()
    assert "conv_out.weight" in moved(before, after, "unet")


def test_sd21(sd21: stage1.Recipe, reload: Reload) -> None:
    train(stage1.build, sd21)
    assert reload(sd21.run.out).config["family"] == "osediff"


def test_sd21_moves_what_lora_adapts(sd21: stage1.Recipe, moved: Moved, reload: Reload) -> None:
    """Merged at the end; with a base in fp32, since bf16 rounds the frozen weights too."""
    train(stage1.build, replace(sd21, adapt=replace(sd21.adapt, base_dtype="fp32")))
    before, after = open_pipeline(sd21.start), reload(sd21.run.out)
    targets = {"unet": unet_targets(before.unet), "vae": vae_targets(before.vae)}
    names = {
        part: {f"{name}.weight" for group in groups.values() for name in group} for part, groups in targets.items()
    }
    assert moved(before, after, "unet") == names["unet"] | {"conv_in.bias"}
    assert moved(before, after, "vae") == names["vae"]


@pytest.mark.parametrize("mode", ["vsd", "literal"])
@pytest.mark.parametrize("teacher_as", ["denoiser", "endpoint"])
@pytest.mark.parametrize("pictures", [False, True])
def test_every_form_gives_four_terms_and_a_gradient(make_mini, mode, teacher_as, pictures, batch: Sample) -> None:
    teachers = dual_teacher(make_mini, Distillation(mode=mode, teacher_as=teacher_as), pictures)
    student = OneStep(make_mini(3))
    z = student(batch["lr"]).z0
    terms = teachers(student, z, batch)
    assert set(terms) == {"A_rn", "B_rn", "A_fl", "B_fl"}
    for term in terms.values():
        assert term > 0
        (gradient,) = torch.autograd.grad(term, z, retain_graph=True)
        assert gradient.abs().max() > 0


def test_agreement_with_the_realistic_teacher_starts_at_zero(make_mini, batch: Sample) -> None:
    """The student is that teacher at first."""
    for mode in ("vsd", "literal"):
        teachers = dual_teacher(make_mini, Distillation(mode=mode))
        student = OneStep(make_mini(0))
        terms = teachers(student, student(batch["lr"]).z0, batch)
        assert terms["A_rn"] == 0
        assert terms["B_rn"] > 0


def test_endpoints_are_snr_weighted_distances_in_the_literal_form(make_mini, batch: Sample) -> None:
    teachers = dual_teacher(make_mini, Distillation("literal", "endpoint", 1.0, 2.0, 5.5, most_snr=5.0))
    student = OneStep(make_mini(3))
    z = student(batch["lr"]).z0
    terms, view = teachers(student, z, batch), teachers.view(student, z, batch)
    abar = alpha_bar(view.timestep)
    weight = (abar / (1 - abar)).clamp(max=5.0)
    ends = {"rn": OneStep(make_mini(0))(batch["lr"]).z0, "fl": teachers.faithful(batch)}
    truth = plain_latents(teachers.vae, batch["sharp"])
    for name, share in (("rn", 1.0), ("fl", 2.0)):
        for term, end in ((f"A_{name}", ends[name]), (f"B_{name}", truth)):
            distance = (weight * (z - end).square()).mean()
            gamma = 5.5 if term.startswith("B") else 1.0
            assert terms[term].item() == pytest.approx(share * gamma * distance.item(), rel=1e-4)


def test_the_student_and_the_truth_are_seen_through_the_same_noise(make_mini, batch: Sample) -> None:
    teachers = dual_teacher(make_mini, Distillation())
    student = OneStep(make_mini(3))
    z = student(batch["lr"]).z0.detach()
    view = teachers.view(student, z, batch)
    assert all(20 <= timestep <= 979 for timestep in view.timestep)
    shared = view.noisy[0] - add_noise(z, torch.zeros_like(z), view.timestep)
    assert torch.allclose(view.noisy[1] - add_noise(view.truth, torch.zeros_like(z), view.timestep), shared, atol=1e-5)


def test_a_faithful_network_gives_the_far_end_of_its_dial(make_mini, batch: Sample) -> None:
    network = OneStep(make_mini(7))
    ends = network(batch["lr"])
    assert torch.equal(Faithful(network, network.vae)(batch), ends.z0 + ends.delta)


def test_the_truth_is_encoded_by_an_encoder_that_does_not_learn(make_mini, batch: Sample) -> None:
    """However the student's own is trained."""
    teachers = dual_teacher(make_mini, Distillation())
    student = OneStep(make_mini(0))
    z = student(batch["lr"]).z0
    before = teachers.view(student, z, batch).truth
    with torch.no_grad():
        for parameter in student.vae.parameters():
            parameter.mul_(1.5)
    assert torch.equal(teachers.view(student, z, batch).truth, before)


def test_score_distillation_may_join(mini: stage1.Recipe, tiny_prior_file: Path, batch: Sample) -> None:
    """Its regulariser is a turn of its own."""
    realism = Realism(vsd=VSD(weight=1.0, guidance=1.0, moved=True))
    turns = stage1.build(replace(mini, realism=realism, prior=tiny_prior_file)).turns
    assert [turn.name for turn in turns] == ["student", "regulariser"]
    out = turns[0].module(batch)
    assert "vsd" in out
    assert torch.equal(out["latents"], turns[0].module.terms.judged(None, out["fake"], batch))


def test_another_restorers_pictures_are_a_teacher(mini: stage1.Recipe, reload: Reload, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, side in (("lr", 16), ("restored", 64), ("hr", 64)):
        (tmp_path / name).mkdir()
        pixels = rng.integers(0, 255, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    folders = {name: tmp_path / name for name in ("lr", "restored", "hr")}
    train(stage1.build, replace(mini, fidelity=None, **folders))
    reload(mini.run.out)


def test_a_realistic_restorers_pictures_take_the_place_of_the_realistic_network(
    make_mini, mini: stage1.Recipe, reload: Reload, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name, side in (("lr", 16), ("realistic", 64), ("hr", 64)):
        (tmp_path / name).mkdir()
        Image.fromarray(rng.integers(0, 255, (side, side, 3), np.uint8)).save(tmp_path / name / "a.png")
    folders = {name: tmp_path / name for name in ("lr", "realistic", "hr")}
    train(stage1.build, replace(mini, **folders))
    reload(mini.run.out)
    with pytest.raises(ValueError, match="--lr and --hr"):
        train(stage1.build, replace(mini, realistic=tmp_path / "realistic"))

    teachers = dual_teacher(make_mini, Distillation(teacher_as="endpoint"))
    pictures = paired_photos(tmp_path / "lr", tmp_path / "hr", tmp_path / "hr", tmp_path / "realistic").make(0, 32)
    batch = {name: tensor[None] for name, tensor in pictures.items()}
    aim = teachers.endpoint("rn", batch)
    assert torch.equal(aim, plain_latents(teachers.vae, batch["realistic"]))


def test_one_faithful_teacher_it_must_be(mini: stage1.Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one faithful teacher"):
        train(stage1.build, replace(mini, fidelity=None))
    with pytest.raises(ValueError, match="one faithful teacher"):
        train(stage1.build, replace(mini, restored=tmp_path))
    with pytest.raises(ValueError, match="--lr and --hr"):
        train(stage1.build, replace(mini, fidelity=None, restored=tmp_path))


def test_nothing_but_reconstruction_where_both_weights_are_zero(make_mini, batch: Sample) -> None:
    teachers = dual_teacher(make_mini, Distillation(realism=0.0, fidelity=0.0))
    student = OneStep(make_mini(3))
    terms = stage1.RealismTerms(Realism(), 0)
    loss = stage1.Student(student, teachers, Reconstruction(l2=1.0, perceptual=0.0, features="none"), terms)
    assert isinstance(loss.perceptual, NoDistance)
    assert set(loss(batch)) == {"l2", "loss", "fake", "real", "latents"}
