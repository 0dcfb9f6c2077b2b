"""The commands of docs/sd21.md, in its order, on tiny random networks of Stable Diffusion's layout."""

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest
import tyro
from PIL import Image
from typer.testing import CliRunner

from ctsr import CTSRPipeline
from ctsr.app.cli import app
from training.stages import stage

pytest.importorskip("peft")

DOCUMENT = Path(__file__).parents[2] / "docs" / "sd21.md"
SMALL = (
    "--data.pairs.crop 64 --run.steps 2 --run.accumulation 1 --run.workers 0 --run.warm-up 0 "
    "--reconstruction.features none --reconstruction.perceptual 0"
)
TAKES_NO_RECONSTRUCTION = {"training.stages.stage2"}


def commands() -> list[list[str]]:
    """The lines of the first block, as words."""
    block = re.search(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


def run_module(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m name words`, here."""
    module = import_module(name)
    monkeypatch.setattr(sys, "argv", [name, *words])
    if name.endswith(".export"):
        tyro.extras.subcommand_cli_from_dict({"weights": module.weights, "pairs": module.pairs})
    else:
        small = SMALL.split(" --reconstruction")[0] if name in TAKES_NO_RECONSTRUCTION else SMALL
        monkeypatch.setattr(sys, "argv", [*sys.argv, *small.split()])
        stage.main(module.RECIPES, module.build)


def test_the_commands_lead_from_the_base_to_a_picture(
    photos: Path, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"SD21_BASE": str(sd_folder), "PHOTOS": str(photos)}
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").resize((24, 16)).convert("RGB").save("photo.png")
    done: list[str] = []
    for words in commands():
        words = [places.get(word, word) for word in words]
        if words[:2] == ["python", "-m"]:
            run_module(words[2], words[3:], monkeypatch)
            done.append(words[2].rpartition(".")[2])
        elif words[0] == "ctsr":
            result = CliRunner().invoke(app, words[1:])
            assert result.exit_code == 0, result.output
    assert done == ["fidelity", "osediff", "stage1", "stage2", "export"]
    assert Image.open("large.png").size == (96, 64)
    assert CTSRPipeline.from_single_file("my-ctsr.safetensors").family.name == "ctsr"
