"""What the host knows of the pack, and what starting with it costs."""

import json
import os
from typing import Any

import pytest

from tests.nodes.schemas import CURRENT

NODES = {
    "LoadCTSR": ["CTSR_MODEL", "VAE"],
    "TimeAwareEncode": ["LATENT"],
    "OneStepSRUNet": ["CTSR_ENDPOINTS"],
    "TradeoffT": ["LATENT"],
    "TiledVAEDecode": ["IMAGE"],
    "CTSRUpscale": ["IMAGE"],
    "CTSRUpscaleVideo": ["VIDEO"],
    "CTSRSweep": ["IMAGE", "IMAGE"],
    "CTSRAutoT": ["FLOAT", "STRING", "MASK"],
    "CTSRDial": ["IMAGE", "FLOAT"],
    "CTSRReport": ["MASK", "MASK", "IMAGE", "STRING"],
}


def test_the_host_imports_the_pack_from_a_folder_of_any_name(server):
    lines = [line for line in server.log.splitlines() if str(server.pack) in line]
    assert any("seconds" in line for line in lines)
    assert not any("FAILED" in line or "Cannot import" in line for line in lines)


def test_the_pack_brings_these_nodes_and_no_others(server):
    known = server.get("/object_info")
    module = f"custom_nodes.{server.pack.name}"
    assert {name for name, info in known.items() if info["python_module"] == module} == set(NODES)


def test_the_kept_description_is_the_hosts(server):
    found = {name: server.get(f"/object_info/{name}")[name] for name in NODES}
    found["LoadCTSR"]["input"]["required"]["checkpoint"][1]["options"] = [
        "ctsr-mini (built-in)",
        "ctsr-lowlight (built-in)",
    ]
    for info in found.values():
        info["python_module"] = "custom_nodes.CTSR"
    if os.environ.get("WRITE_OBJECT_INFO") == "1":
        CURRENT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    kept = json.loads(CURRENT.read_text(encoding="utf-8"))
    assert list(kept) == list(found)
    for name, info in found.items():
        assert common(info, kept[name]) == kept[name]


def common(told: Any, kept: Any) -> Any:
    """What a host tells, without the fields that an older one does not know."""
    if isinstance(told, dict) and isinstance(kept, dict):
        return {key: common(told[key], kept[key]) for key in kept}
    if isinstance(told, list) and isinstance(kept, list):
        return [common(one, other) for one, other in zip(told, kept, strict=True)]
    return told


@pytest.mark.parametrize("name", NODES)
def test_node_is_described(server, name):
    info = server.get(f"/object_info/{name}")[name]
    assert info["category"] == "image/upscaling/CTSR"
    assert info["output"] == NODES[name]
    assert info["display_name"]
    assert info["description"]
    assert all(info["output_name"])
    assert all(info["output_tooltips"])
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    assert [key for key, spec in inputs.items() if not spec[1].get("tooltip")] == []


def test_hosts_that_know_more_of_a_node_are_told_it(server):
    info = server.get("/object_info")
    if "search_aliases" not in info["CTSRUpscale"]:
        pytest.skip("this host has no other words to find a node by")
    assert {"super resolution", "restore", "enlarge", "faithful"} <= set(info["CTSRUpscale"]["search_aliases"])
    assert all(info[name]["search_aliases"] for name in NODES)
    assert info["CTSRUpscale"]["essentials_category"] == "Image Tools"
    assert info["CTSRUpscaleVideo"]["essentials_category"] == "Video Tools"


@pytest.mark.parametrize(("name", "key"), [("TradeoffT", "t"), ("TradeoffT", "t_inside"), ("CTSRUpscale", "t")])
def test_the_dial_is_a_slider_that_names_its_ends(server, name, key):
    kind, spec = server.get(f"/object_info/{name}")[name]["input"]["required"][key]
    assert (kind, spec["widgetType"], spec["display"]) == ("FLOAT,INT", "FLOAT", "slider")
    assert (spec["min"], spec["max"]) == (0, 1)
    assert "0 = most realistic" in spec["tooltip"]
    assert "1 = most faithful" in spec["tooltip"]


def test_starting_imports_neither_diffusers_nor_the_library(server, at_start):
    ours = [name for name in at_start["modules"] if name.startswith(str(server.pack).replace(".", "_x_"))]
    assert any(name.endswith(".nodes.load") for name in ours)
    assert not [name for name in ours if ".ctsr" in name]
    assert not {"diffusers", "peft"} & set(at_start["modules"])
