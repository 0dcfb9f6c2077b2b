"""The root __init__.py as ComfyUI loads it: by path, from a folder of any name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

LOAD = """
import importlib.util, json, sys

folder = sys.argv[1]
spec = importlib.util.spec_from_file_location(
    folder.replace(".", "_x_"), f"{folder}/__init__.py", submodule_search_locations=[folder]
)
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
heavy = [name for name in ("torch", "diffusers", "transformers", "ctsr") if name in sys.modules]
print(json.dumps({"nodes": sorted(module.NODE_CLASS_MAPPINGS), "heavy": heavy}))
"""


def test_loads_by_path_under_any_folder_name_and_imports_nothing_heavy(tmp_path):
    pack = tmp_path / "ComfyUI-CTSR-main.1"
    pack.mkdir()
    shutil.copy(ROOT / "__init__.py", pack)
    command = [sys.executable, "-c", LOAD, str(pack)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"nodes": [], "heavy": []}
