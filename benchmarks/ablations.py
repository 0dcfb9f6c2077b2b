"""Ablations of ctsr-mini 2: short runs of equal budget that differ in one thing.

    python -m benchmarks.ablations --photos PHOTOS --perceptual PERCEPTUAL --fidelity FILE --taught TAUGHT \\
        --x4plus X4PLUS --out FOLDER [--steps 150]
    ctsr evaluate --lr LR --hr HR --model FOLDER/NAME/model.safetensors --t 0 --features PERCEPTUAL -o SCORES

FILE is of `training.stages.fidelity mini2`; PERCEPTUAL, TAUGHT (LR, HR, t0, t1) and X4PLUS are those of
`training/README.md`.
Each variant leaves FOLDER/NAME/model.safetensors; one that is there already is not trained again.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from ctsr.assess.vgg import VGG_FILE
from training.losses.realism import Realism
from training.losses.reconstruction import Reconstruction
from training.stages import joint, osediff, stage1, stage2
from training.stages.stage import RESULT, train


@dataclass(frozen=True)
class Ablations:
    """What to run on.

    Attributes:
        photos: folder of photographs.
        perceptual: folder of VGG16's features and the heads of LPIPS and DISTS.
        fidelity: file of that stage, with which all begin.
        taught: folder of LR, HR, t0 and t1: what another model made of crops of the photographs, by `export taught`.
        x4plus: folder of what Real-ESRGAN x4plus made of the same LR.
        out: folder for everything.
        steps: of every variant.
    """

    photos: Path
    perceptual: Path
    fidelity: Path
    taught: Path
    x4plus: Path
    out: Path
    steps: int = 150


def budget(recipe: Any, settings: Ablations, name: str) -> Any:
    """The recipe on these photographs, of this length, writing to the variant's folder."""
    run = replace(
        recipe.run, out=settings.out / name, steps=settings.steps, ema=0.98, warm_up=20, validate_every=settings.steps
    )
    return replace(recipe, data=replace(recipe.data, photos=settings.photos), run=run)


def distance(weights: Reconstruction, settings: Ablations, perceptual: bool) -> Reconstruction:
    """These distances with VGG16's at hand, or without them."""
    if perceptual:
        return replace(weights, weights=settings.perceptual)
    return replace(weights, perceptual=0.0, features="none")


def discriminator(terms: Realism, settings: Ablations, used: bool) -> Realism:
    """The discriminator on VGG16's frozen features, or none."""
    features = settings.perceptual / VGG_FILE
    weight = terms.adversarial.weight if used else 0.0
    return replace(terms, adversarial=replace(terms.adversarial, weight=weight, features=features))


def realistic(settings: Ablations, name: str, perceptual: bool, adversarial: bool) -> None:
    """`osediff` with or without its two terms of realism."""
    recipe = replace(
        osediff.MINI2,
        start=str(settings.fidelity),
        reconstruction=distance(osediff.MINI2.reconstruction, settings, perceptual),
        realism=discriminator(osediff.MINI2.realism, settings, adversarial),
    )
    train(osediff.build, budget(recipe, settings, name))


def student(settings: Ablations, name: str, distilled: bool) -> None:
    """`stage1` behind osediff, with or without the directions of both teachers."""
    weights = stage1.MINI2.distillation
    recipe = replace(
        stage1.MINI2,
        start=str(settings.out / "osediff-both" / RESULT),
        fidelity=settings.fidelity,
        reconstruction=distance(stage1.MINI2.reconstruction, settings, True),
        realism=discriminator(stage1.MINI2.realism, settings, True),
        distillation=weights if distilled else replace(weights, realism=0.0, fidelity=0.0),
    )
    train(stage1.build, budget(recipe, settings, name))


def polished(settings: Ablations, name: str, realistic_pictures: Path | None) -> None:
    """`stage2`, once for all, and `joint` behind it, taught by another restorer's pictures or by photographs alone."""
    dial = settings.out / "stage2" / RESULT
    if not dial.exists():
        start = str(settings.out / "stage1" / RESULT)
        train(stage2.build, budget(replace(stage2.MINI2, start=start, fidelity=settings.fidelity), settings, "stage2"))
    recipe = replace(
        joint.MINI2,
        start=str(dial),
        realistic=distance(joint.MINI2.realistic, settings, True),
        realism=discriminator(joint.MINI2.realism, settings, True),
    )
    if realistic_pictures is not None:
        folders = {"lr": "LR", "hr": "HR", "faithful_pictures": "t1"}
        paths = {name: settings.taught / folder for name, folder in folders.items()}
        recipe = replace(recipe, **paths, realistic_pictures=realistic_pictures, taught_share=0.6)
    train(joint.build, budget(recipe, settings, name))


def main(settings: Ablations) -> None:
    """Trains what is missing, in the order in which one needs another."""
    settings.out.mkdir(parents=True, exist_ok=True)
    variants = {
        "osediff-neither": lambda name: realistic(settings, name, False, False),
        "osediff-perceptual": lambda name: realistic(settings, name, True, False),
        "osediff-discriminator": lambda name: realistic(settings, name, False, True),
        "osediff-both": lambda name: realistic(settings, name, True, True),
        "stage1": lambda name: student(settings, name, True),
        "stage1-undistilled": lambda name: student(settings, name, False),
        "joint-photographs": lambda name: polished(settings, name, None),
        "joint-taught": lambda name: polished(settings, name, settings.taught / "t0"),
        "joint-x4plus": lambda name: polished(settings, name, settings.x4plus),
    }
    for name, make in variants.items():
        if not (settings.out / name / RESULT).exists():
            make(name)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(tyro.cli(Ablations))
