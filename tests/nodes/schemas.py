"""The nodes as a real host describes them, kept in files: what users' workflows and prompts of a release rely on.

`object_info/current.json` is the present state; tests/host/test_registration.py compares it with a host and, with
WRITE_OBJECT_INFO=1 in the environment, writes it. Files of releases never change.
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "object_info"
CURRENT = FOLDER / "current.json"
RELEASES = sorted(FOLDER.glob("v*.json"))


def read_schemas(path: Path) -> dict[str, dict[str, Any]]:
    """By node id: display_name, description, category, and the slots of inputs and outputs in order."""
    return {name: schema_of(info) for name, info in json.loads(path.read_text(encoding="utf-8")).items()}


def schema_of(info: dict[str, Any]) -> dict[str, Any]:
    """Of one node."""
    groups = [(group, info["input"].get(group, {})) for group in ("required", "optional")]
    inputs = [
        {"id": name, "type": kind, "optional": group == "optional", **options}
        for group, slots in groups
        for name, (kind, options) in slots.items()
    ]
    outputs = [
        {"display_name": name, "type": kind, "tooltip": tooltip}
        for name, kind, tooltip in zip(info["output_name"], info["output"], info["output_tooltips"], strict=True)
    ]
    kept = {key: info[key] for key in ("display_name", "description", "category")}
    return {**kept, "inputs": inputs, "outputs": outputs}


SCHEMAS = read_schemas(CURRENT)
