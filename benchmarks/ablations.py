"""The mini's ablations: short runs of equal budget that differ in one thing, and their pictures of the same held-back
photographs for a scorer.

    python benchmarks/ablations.py --photos PHOTOS --autoencoder FILE --fidelity FILE --teacher FILE --prior FILE \\
        --out FOLDER --steps 200

Each variant leaves FOLDER/NAME/model.safetensors (B2: its UNet) and FOLDER/pictures/NAME-t/*.png; the truth is in
FOLDER/held_back. A variant that is there already is not trained again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from ctsr.families import blend
from training.data.datasets import batches_of_one, open_photos
from training.engine.sources import Sample
from training.losses.adversarial import Adversarial
from training.losses.realism import Realism
from training.losses.vsd import VSD
from training.model.one_step import OneStep, open_pipeline
from training.research import stage2_variants
from training.research.stage2_variants import b2_latent, encoded, open_variant
from training.stages import fidelity, osediff, stage1, stage2
from training.stages.export import to_image
from training.stages.stage import DIAL, RESULT, Stage, train

ADVERSARIAL = osediff.MINI.realism.adversarial
NO_ADVERSARIAL = Adversarial(weight=0.0)
NO_SCORE = osediff.MINI.realism.vsd
SCORE = replace(NO_SCORE, weight=1.0)


@dataclass(frozen=True)
class Ablations:
    """What to run on.

    Attributes:
        photos: folder of photographs.
        autoencoder, fidelity, teacher, prior: files of these stages ("teacher" of osediff).
        out: folder for everything.
        steps: of every variant.
        batch: pictures a step.
    """

    photos: Path
    autoencoder: Path
    fidelity: Path
    teacher: Path
    prior: Path
    out: Path
    steps: int = 200
    batch: int = 8


def budget(recipe: Any, settings: Ablations, name: str) -> Any:
    """The recipe on these photographs, of this length, writing to the variant's folder."""
    data = replace(recipe.data, photos=settings.photos)
    run = replace(
        recipe.run,
        out=settings.out / name,
        steps=settings.steps,
        batch=settings.batch,
        ema=0.98,
        warm_up=20,
        validate_every=settings.steps,
    )
    return replace(recipe, data=data, run=run)


def realism(vsd: VSD, adversarial: Adversarial) -> Realism:
    """Both terms."""
    return Realism(vsd, replace(adversarial, delay=20))


def without_timestep(file: Path, out: Path) -> Path:
    """The pipeline of `file` with a plain encoder."""
    pipeline = open_pipeline(file)
    pipeline.register_to_config(encoder_timesteps=None)
    pipeline.save_single_file(out, torch.float32)
    return out


def variants(settings: Ablations) -> dict[str, Callable[[], None]]:
    """Name -> training."""
    teacher = replace(osediff.MINI, start=str(settings.fidelity), prior=settings.prior)
    student = replace(stage1.MINI, start=str(settings.teacher), fidelity=settings.fidelity, prior=settings.prior)
    alone = replace(student.distillation, realism=0.0, fidelity=0.0)
    plain = without_timestep(settings.autoencoder, settings.out / "plain.safetensors")
    faithful = replace(fidelity.MINI, start=str(settings.autoencoder))
    first = settings.out / "distilled" / RESULT
    bends = replace(stage2.MINI, start=str(first), fidelity=settings.fidelity)
    timed = replace(stage2_variants.MINI, start=str(first), fidelity=settings.fidelity)
    rows: dict[str, tuple[Any, Callable[[Any], Stage]]] = {
        "time-aware": (faithful, fidelity.build),
        "time-blind": (replace(faithful, start=str(plain)), fidelity.build),
        "teacher-neither": (replace(teacher, realism=realism(NO_SCORE, NO_ADVERSARIAL)), osediff.build),
        "teacher-adversarial": (replace(teacher, realism=realism(NO_SCORE, ADVERSARIAL)), osediff.build),
        "teacher-vsd": (replace(teacher, realism=realism(SCORE, NO_ADVERSARIAL)), osediff.build),
        "teacher-both": (replace(teacher, realism=realism(SCORE, ADVERSARIAL)), osediff.build),
        "distilled": (replace(student, realism=realism(NO_SCORE, ADVERSARIAL)), stage1.build),
        "undistilled": (
            replace(student, distillation=alone, realism=realism(NO_SCORE, ADVERSARIAL)),
            stage1.build,
        ),
        "distilled-vsd": (replace(student, realism=realism(SCORE, NO_ADVERSARIAL)), stage1.build),
        "b1": (bends, stage2.build),
        "b2": (timed, stage2_variants.build),
    }
    return {name: lambda name=name: train(rows[name][1], budget(rows[name][0], settings, name)) for name in rows}


def write(pictures: dict[str, Tensor], folder: Path, number: int) -> None:
    """Each [1, 3, H, W] as folder/KEY/NUMBER.png."""
    for key, picture in pictures.items():
        (folder / key).mkdir(parents=True, exist_ok=True)
        to_image(picture[0].float()).save(folder / key / f"{number:03d}.png")


@torch.no_grad()
def render(name: str, settings: Ablations, pairs: list[Sample]) -> None:
    """The variant's pictures of the held-back photographs, at t = 0, .5 and 1."""
    first = settings.out / "distilled" / RESULT
    folder = settings.out / name
    model = open_variant(first, folder / "unet") if name == "b2" else OneStep(open_pipeline(folder / RESULT))
    for number, sample in enumerate(batches_of_one(pairs, model.unet)):
        lr = sample["lr"]
        with torch.autocast("cpu", torch.bfloat16):
            if name == "b2":
                z = encoded(model, lr)
                latents = {t: b2_latent(model, z, t) for t in DIAL}
            else:
                ends = model(lr)
                latents = {t: blend(ends, t) for t in DIAL}
            write({f"{name}-{t:g}": model.decode(z) for t, z in latents.items()}, settings.out / "pictures", number)


def main(settings: Ablations) -> None:
    """Trains and renders what is missing."""
    settings.out.mkdir(parents=True, exist_ok=True)
    data = replace(osediff.MINI.data, photos=settings.photos)
    pairs = open_photos(data)[1]
    for number, pair in enumerate(pairs):
        write({"LR": pair["lr"][None], "HR": pair["soft"][None]}, settings.out / "held_back", number)
    for name, train_it in variants(settings).items():
        if (settings.out / "pictures" / f"{name}-1").is_dir():
            continue
        train_it()
        render(name, settings, pairs)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main(tyro.cli(Ablations))
