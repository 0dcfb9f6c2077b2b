"""The root __init__.py as ComfyUI loads it, by path from a folder of any name; and what the registry is given."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMFY: dict[str, Any] = PROJECT["tool"]["comfy"]

LOAD = """
import importlib.util, inspect, json, os, sys

folder = sys.argv[1]
spec = importlib.util.spec_from_file_location(
    folder.replace(".", "_x_"), f"{folder}/__init__.py", submodule_search_locations=[folder]
)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
path = list(sys.path)
spec.loader.exec_module(module)
others = ("torch", "numpy", "PIL", "diffusers", "transformers", "ctsr", "nodes", "comfy", "comfy_api", "folder_paths")
print(json.dumps({
    "exports": sorted(module.__all__),
    "entrypoint": inspect.iscoroutinefunction(module.comfy_entrypoint),
    "old-style nodes": hasattr(module, "NODE_CLASS_MAPPINGS"),
    "web": os.path.normpath(os.path.join(folder, module.WEB_DIRECTORY)),
    "imported": [name for name in others if name in sys.modules],
    "path": sys.path != path,
}))
"""


@pytest.mark.parametrize("name", ["ComfyUI-CTSR-main.1", "ctsr", "上采样 (2)"])
def test_loads_by_path_under_any_folder_name_and_imports_nothing_heavy(name, tmp_path):
    pack = tmp_path / name
    shutil.copytree(ROOT / "nodes", pack / "nodes", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", pack)
    command = [sys.executable, "-X", "utf8", "-c", LOAD, str(pack)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "exports": ["WEB_DIRECTORY", "comfy_entrypoint"],
        "entrypoint": True,
        "old-style nodes": False,  # the host would take these alone
        "web": str(pack / "web"),
        "imported": [],
        "path": False,
    }


def test_import_from_the_folder_that_holds_a_checkout_named_ctsr_gives_the_library(tmp_path):
    shutil.copytree(ROOT / "ctsr", tmp_path / "ctsr" / "ctsr", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copy(ROOT / "__init__.py", tmp_path / "ctsr")
    code = "import ctsr; from ctsr import blend; print(ctsr.__file__, blend.__module__, sep='\\n')"
    command = [sys.executable, "-X", "utf8", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "ctsr/ctsr/__init__.py"), "ctsr.families"]


def test_the_folder_of_documents_exists_and_is_named_once():
    assert (ROOT / "web" / "docs").is_dir()
    assert "web" not in COMFY  # the host takes it from WEB_DIRECTORY


# --------------------------------------------------------------------------------------------------------- registry


def test_what_the_registry_asks_for():
    project = PROJECT["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert re.fullmatch(r"[a-z0-9-]*", COMFY["PublisherId"])
    assert COMFY["DisplayName"] == "CTSR"
    addresses = [*project["urls"].values(), *filter(None, [COMFY["Icon"]])]
    assert all(address.startswith("https://") and "example" not in address for address in addresses)
    with Image.open(ROOT / "icon.png") as icon:
        assert icon.format == "PNG"
        assert max(icon.size) <= 400
    assert Requirement("comfyui" + COMFY["requires-comfyui"]).specifier.contains("0.3.64")
    assert COMFY["includes"] == []  # every file of the pack is in git, and none is in .comfyignore


def listed(*options: str) -> set[str]:
    """Files of the checkout that git lists; skips where this is no checkout of git."""
    command = ["git", "-c", "core.quotePath=false", "ls-files", *options]
    try:
        return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"what would be published is a question to git, which cannot answer here: {error}")


def published() -> set[str]:
    """What the registry's tool packs: files that git keeps, or will keep, without those of .comfyignore."""
    kept = listed("--cached", "--others", "--exclude-standard")
    return kept - listed("--cached", "--others", "--ignored", "--exclude-from=.comfyignore")


def test_the_published_pack_holds_all_that_nodes_need_and_nothing_for_developers():
    files = published()
    tops = {name.split("/")[0] for name in files}
    assert tops >= {"__init__.py", "ctsr", "nodes", "web", "examples", "LICENSE", "README.md", "pyproject.toml"}
    for_developers = {"tests", "training", "benchmarks", "CONTRIBUTING.md"}
    assert not tops & {*for_developers, ".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}
    kept = listed("--cached", "--others", "--exclude-standard")
    shipped = re.compile(r"(ctsr|nodes|web|locales|examples|subgraphs)/|requirements\.txt$")
    assert {name for name in kept if shipped.match(name)} <= files
    assert "ctsr/weights/ctsr-mini.safetensors" in files


# ----------------------------------------------------------------------------------------------------- requirements

OF_THE_HOST = {"torch", "xformers", "peft", "numpy", "pillow", "einops", "safetensors"}
"""What a host brings in versions of its own choice, or what the node path does without."""


def wanted() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {requirement.name: requirement for requirement in found}


def test_requirements_are_diffusers_from_the_projects_floor_on_and_no_bound() -> None:
    project = {r.name: r for r in map(Requirement, PROJECT["project"]["dependencies"])}
    assert list(wanted()) == ["transformers", "diffusers"]
    assert str(wanted()["diffusers"].specifier) == str(project["diffusers"].specifier)
    assert all(bound.operator == ">=" for r in wanted().values() for bound in r.specifier)


def test_requirements_move_nothing_of_the_hosts() -> None:
    """transformers is there for pip to heed what the host's own asks of others: any version of it will do."""
    assert str(wanted()["transformers"].specifier) == ""
    assert not OF_THE_HOST & {name.lower() for name in wanted()}
