"""The last stage: every weight learns, both ends and the way between them speak, and the file has a dial."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline
from training.data.datasets import Data
from training.data.pairs import Pairs
from training.engine.run import Run
from training.engine.sources import Sample
from training.losses.adversarial import Adversarial
from training.losses.realism import Realism, RealismTerms
from training.losses.reconstruction import Reconstruction
from training.losses.vsd import VSD
from training.model.one_step import OneStep, open_pipeline
from training.stages import joint
from training.stages.joint import Dial
from training.stages.stage import train

SILENT = Reconstruction(l1=0.0, l2=0.0, low=0.0, perceptual=0.0, features="none")
L2 = replace(SILENT, l2=1.0)


@pytest.fixture
def recipe(photos: Path, stage_files: dict[str, Path], make_run: Callable[..., Run], tmp_path: Path) -> joint.Recipe:
    data = Data(photos, pairs=Pairs(crop=32))
    return replace(joint.MINI, data=data, run=make_run(tmp_path / "joint"), start=str(stage_files["mini"]))


def dial(model: OneStep, recipe: joint.Recipe) -> Dial:
    return Dial(model, recipe, RealismTerms(Realism(), 0))


def test_every_weight_learns_under_both_realism_terms(
    recipe: joint.Recipe,
    tiny_prior_file: Path,
    moved: Callable[[CTSRPipeline, CTSRPipeline, str], set[str]],
    reload: Callable[[Path], CTSRPipeline],
) -> None:
    both = Realism(VSD(weight=1.0, guidance=1.0), Adversarial(weight=0.5, delay=0))
    train(joint.build, replace(recipe, realism=both, prior=tiny_prior_file, run=replace(recipe.run, warm_up=0)))
    state = torch.load(recipe.run.out / "checkpoint.pt", weights_only=True)
    assert state["modules"].keys() == {"dial", "regulariser", "discriminator"}
    before, after = open_pipeline(recipe.start), reload(recipe.run.out)
    assert after.config["family"] == "ctsr"
    for part in ("unet", "vae"):
        assert moved(before, after, part) == set(getattr(before, part).state_dict())


@pytest.mark.parametrize(
    ("realistic", "faithful", "path", "groups"),
    [(L2, SILENT, 0.0, (1, 0, 0)), (SILENT, L2, 0.0, (1, 1, 0)), (SILENT, SILENT, 1.0, (1, 1, 1))],
    ids=["realistic", "faithful", "path"],
)
def test_each_term_speaks_to_the_output_groups_it_is_made_of(
    make_mini: Callable[..., CTSRPipeline],
    recipe: joint.Recipe,
    batch: Sample,
    realistic: Reconstruction,
    faithful: Reconstruction,
    path: float,
    groups: tuple[int, ...],
) -> None:
    model = OneStep(make_mini(3))
    loss = dial(model, replace(recipe, realistic=realistic, faithful=faithful, path=path))
    loss(batch)["loss"].backward()
    parts = model.unet.conv_out.weight.grad.chunk(3)
    assert [int(part.abs().max() > 0) for part in parts] == list(groups)


def test_the_ends_are_held_to_the_sharp_and_the_soft_truth(
    make_mini: Callable[..., CTSRPipeline], recipe: joint.Recipe, batch: Sample
) -> None:
    loss = dial(OneStep(make_mini(3)), replace(recipe, realistic=L2, faithful=L2))
    first = loss(batch)
    for truth, end, other in (("sharp", "realistic_l2", "faithful_l2"), ("soft", "faithful_l2", "realistic_l2")):
        changed = loss({**batch, truth: -batch[truth]})
        assert changed[end] != first[end]
        assert torch.equal(changed[other], first[other])


def test_features_of_an_end_count_where_they_are_asked_for(
    make_mini: Callable[..., CTSRPipeline], recipe: joint.Recipe, batch: Sample
) -> None:
    felt = replace(SILENT, perceptual=1.0, features="encoder")
    terms = dial(OneStep(make_mini(3)), replace(recipe, realistic=felt, faithful=felt))(batch)
    assert terms["realistic_perceptual"] > 0
    assert terms["faithful_perceptual"] > 0


def test_two_restorers_pictures_teach_both_ends(recipe: joint.Recipe, tmp_path: Path) -> None:
    """Each end its own, and the file is better at both than what it started from."""
    folders = {name: tmp_path / name for name in ("lr", "hr", "realistic", "faithful")}
    colours = {"lr": (90, 120, 60), "hr": (90, 120, 60), "realistic": (140, 120, 60), "faithful": (90, 70, 60)}
    for name, folder in folders.items():
        folder.mkdir()
        Image.new("RGB", (8, 8) if name == "lr" else (32, 32), colours[name]).save(folder / "one.png")
    silent = replace(recipe, realistic=L2, faithful=L2, path=0.0, realism=Realism(), peak_rate=2e-3)
    taught = replace(
        silent,
        lr=folders["lr"],
        hr=folders["hr"],
        realistic_pictures=folders["realistic"],
        faithful_pictures=folders["faithful"],
        taught_share=1.0,
        run=replace(recipe.run, steps=30, warm_up=0, ema=0.5, validate_every=100),
    )
    train(joint.build, taught)

    def distances(file: str | Path) -> list[float]:
        pipe, picture = CTSRPipeline.from_single_file(file), Image.open(folders["lr"] / "one.png")
        ends = [pipe(picture, t=t, color_fix="none", output_type="np").images for t in (0.0, 1.0)]
        aims = [np.array(colours[name]) / 255 for name in ("realistic", "faithful")]
        return [float(np.abs(end - aim).mean()) for end, aim in zip(ends, aims, strict=True)]

    before, after = distances(recipe.start), distances(taught.run.out / "model.safetensors")
    assert all(b < 0.7 * a for a, b in zip(before, after, strict=True))
    with pytest.raises(ValueError, match="together, or none"):
        train(joint.build, replace(taught, hr=None))


def test_a_unet_that_does_not_learn_is_refused(recipe: joint.Recipe) -> None:
    with pytest.raises(ValueError, match=r"--adapt\.unet full"):
        train(joint.build, replace(recipe, adapt=replace(recipe.adapt, unet="frozen")))
