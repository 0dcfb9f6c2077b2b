"""Shared workflows against the schemas, which are read from the sources: no host is needed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.nodes.schemas import RELEASES, SCHEMAS, read_schemas

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.json"))
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
RELEASED = sorted((Path(__file__).parent / "workflows").glob("*/*.json"))
"""Workflows as earlier releases saved them, a folder a release: never changed, since users have such files."""
LOADERS = {"LoadCTSR": "checkpoint"}
BUILT_IN = "ctsr-mini (built-in)"
ABSOLUTE = re.compile(r"(?:^|[\s\"'(])(?:~?/\w|[A-Za-z]:[\\/])|\\\\|file:|localhost|127\.0\.0\.1")
MOST_PICTURE_BYTES, PICTURE_WIDTH = 200_000, 768

EACH_SHARED = pytest.mark.parametrize("path", [*EXAMPLES, *BLUEPRINTS], ids=lambda path: path.stem)
EACH_EXAMPLE = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
EACH_RELEASED = pytest.mark.parametrize("path", RELEASED, ids=lambda path: f"{path.parent.name}-{path.stem}")

Node = dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    """A workflow."""
    return json.loads(path.read_text(encoding="utf-8"))


def all_nodes(workflow: dict[str, Any]) -> list[Node]:
    """Nodes of a workflow and of the subgraphs that it defines."""
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return [node for graph in graphs for node in graph["nodes"]]


def our_nodes(path: Path) -> list[Node]:
    """Those of this pack, of which a shared workflow has at least one."""
    nodes = [node for node in all_nodes(load(path)) if node["type"] in SCHEMAS]
    assert nodes
    return nodes


def widgets(node_type: str) -> list[dict[str, Any]]:
    """A schema's inputs that are widgets, which alone have a default, in order."""
    return [entry for entry in SCHEMAS[node_type]["inputs"] if "default" in entry]


def sockets(node_type: str) -> set[str]:
    """Names of a schema's inputs that can only be connected."""
    return {entry["id"] for entry in SCHEMAS[node_type]["inputs"] if "default" not in entry}


def fits(value: Any, widget: dict[str, Any]) -> bool:
    """Whether a widget takes a value; the choices of checkpoints are the host's to know."""
    if isinstance(value, str):
        return "min" not in widget and (widget.get("options") is None or value in widget["options"])
    return "min" in widget and widget["min"] <= value <= widget["max"]


def strings(content: Any) -> Iterator[str]:
    """Every text of a JSON value."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from strings(part)


def test_there_are_examples_blueprints_and_released_workflows():
    assert {path.stem for path in EXAMPLES} == {
        "Upscale in one node",
        "Upscale step by step",
        "Keep a face faithful with a mask",
        "Compare several t",
        "Large picture in tiles",
        "Upscale a video",
        "Drag t on the picture",
        "Choose t automatically and report",
    }
    assert [path.stem for path in BLUEPRINTS] == ["Upscale ×4 (CTSR)"]
    for path in RELEASES:
        shown = {node["type"] for saved in RELEASED if saved.parent.name == path.stem for node in our_nodes(saved)}
        assert shown == set(read_schemas(path))


@EACH_SHARED
def test_values_of_our_widgets_are_as_many_as_the_schema_has_and_fit_it(path: Path):
    for node in our_nodes(path):
        declared = widgets(node["type"])
        assert len(node["widgets_values"]) == len(declared)
        for value, widget in zip(node["widgets_values"], declared, strict=True):
            assert fits(value, widget), (node["type"], widget["id"], value)


@EACH_SHARED
def test_slots_of_our_nodes_are_those_of_the_schema(path: Path):
    for node in our_nodes(path):
        assert {slot["name"] for slot in node["inputs"] if "widget" not in slot} == sockets(node["type"])
        assert [slot["name"] for slot in node["outputs"]] == [
            entry["display_name"] for entry in SCHEMAS[node["type"]]["outputs"]
        ]


@EACH_SHARED
def test_what_is_shared_needs_no_file_of_this_machine(path: Path):
    assert [text for text in strings(load(path)) if ABSOLUTE.search(text)] == []
    for node in our_nodes(path):
        if (name := LOADERS.get(node["type"])) is not None:
            names = [entry["id"] for entry in widgets(node["type"])]
            assert node["widgets_values"][names.index(name)] == BUILT_IN


@EACH_EXAMPLE
def test_an_example_has_a_picture_and_a_note(path: Path):
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < MOST_PICTURE_BYTES
    with Image.open(picture) as image:
        assert (image.format, image.width) == ("JPEG", PICTURE_WIDTH)
    assert [node["type"] for node in load(path)["nodes"]].count("MarkdownNote") == 1


@EACH_EXAMPLE
@pytest.mark.parametrize(("language", "mark"), [("zh", "**中文**"), ("ja", "**日本語**")])
def test_a_note_names_inputs_and_outputs_as_the_canvas_does(path: Path, language: str, mark: str):
    names = load(ROOT / "locales" / language / "nodeDefs.json")
    (note,) = [node for node in load(path)["nodes"] if node["type"] == "MarkdownNote"]
    (line,) = [line for line in note["widgets_values"][0].splitlines() if line.startswith(mark)]
    for node in our_nodes(path):
        shown = names[node["type"]]["inputs"]
        foreign = [slot["name"] for slot in node["inputs"] if shown[slot["name"]]["name"] != slot["name"]]
        assert [name for name in foreign if re.search(rf"\b{name}\b", line, re.ASCII)] == []


@EACH_SHARED
def test_every_node_tells_the_pack_that_brings_it(path: Path):
    """So that a host which lacks it offers to install it."""
    subgraphs = {graph["id"] for graph in load(path).get("definitions", {}).get("subgraphs", ())}
    for node in all_nodes(load(path)):
        if node["type"] != "MarkdownNote" and node["type"] not in subgraphs:
            told = node["properties"]
            assert told["cnr_id"] == ("ctsr" if node["type"] in SCHEMAS else "comfy-core")
            assert re.fullmatch(r"\d+\.\d+\.\d+", told["ver"])


@EACH_EXAMPLE
def test_nodes_of_an_example_lie_well_apart(path: Path):
    """Nodes 2.0 draws them larger than their size, which is the classic one: see the browser tests."""
    title = 30  # pixels above a node's position
    boxes = [
        (x, y - title, x + width, y + height)
        for node in load(path)["nodes"]
        for (x, y), (width, height) in [(node["pos"], node["size"])]
    ]
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom in boxes[:i]:
            assert left >= other_right or other_left >= right or top >= other_bottom or other_top >= bottom


def test_the_blueprint_offers_picture_scale_and_dial():
    (path,) = BLUEPRINTS
    workflow = load(path)
    (node,), (subgraph,) = workflow["nodes"], workflow["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"]
    assert node["title"] == subgraph["name"] == path.stem  # hosts show the file's name
    for slots in (node["inputs"], subgraph["inputs"]):
        assert [(slot["name"], slot["type"]) for slot in slots] == [
            ("image", "IMAGE"), ("scale", "FLOAT"), ("t", "FLOAT"),
        ]  # fmt: skip
    for slots in (node["outputs"], subgraph["outputs"]):
        assert [(slot["name"], slot["type"]) for slot in slots] == [("image", "IMAGE")]
    assert {inner["type"] for inner in subgraph["nodes"]} == {
        "LoadCTSR", "TimeAwareEncode", "OneStepSRUNet", "TradeoffT", "TiledVAEDecode",
    }  # fmt: skip


@EACH_RELEASED
def test_widgets_and_outputs_of_a_release_have_only_been_appended_to(path: Path):
    for node in our_nodes(path):
        schema = SCHEMAS[node["type"]]
        saved = [slot["name"] for slot in node["inputs"] if "widget" in slot]
        assert [entry["id"] for entry in widgets(node["type"])][: len(saved)] == saved
        outputs = [slot["name"] for slot in node["outputs"]]
        assert [entry["display_name"] for entry in schema["outputs"]][: len(outputs)] == outputs
        assert {slot["name"] for slot in node["inputs"] if "widget" not in slot} <= sockets(node["type"])


@EACH_RELEASED
def test_values_of_a_release_still_fit(path: Path):
    for node in our_nodes(path):
        saved = [slot["name"] for slot in node["inputs"] if "widget" in slot]
        by_name = {entry["id"]: entry for entry in widgets(node["type"])}
        for name, value in zip(saved, node["widgets_values"], strict=True):
            assert fits(value, by_name[name]), (node["type"], name, value)


@pytest.mark.parametrize("path", RELEASES, ids=lambda path: path.stem)
def test_prompts_of_a_release_stay_good(path: Path):
    """Nothing is gone or of another type, every value still fits, and what came later may be left out."""
    for name, before in read_schemas(path).items():
        now = {entry["id"]: entry for entry in SCHEMAS[name]["inputs"]}
        for entry in before["inputs"]:
            kept = now.pop(entry["id"])
            assert set(entry["type"].split(",")) <= set(kept["type"].split(","))
            assert kept.get("default") == entry.get("default")
            assert set(entry.get("options", ())) <= set(kept.get("options", ()))
            assert kept.get("min", 0) <= entry.get("min", 0)
            assert kept.get("max", 0) >= entry.get("max", 0)
        assert [entry["id"] for entry in now.values() if not entry["optional"]] == []
        types = [entry["type"] for entry in SCHEMAS[name]["outputs"]]
        assert types[: len(before["outputs"])] == [entry["type"] for entry in before["outputs"]]
