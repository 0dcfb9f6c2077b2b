"""What the host knows of the pack, and what starting with it costs."""

import pytest

NODES = {
    "LoadCTSR": ["CTSR_MODEL", "VAE"],
    "TimeAwareEncode": ["LATENT"],
    "OneStepSRUNet": ["CTSR_ENDPOINTS"],
    "TradeoffT": ["LATENT"],
    "TiledVAEDecode": ["IMAGE"],
    "CTSRUpscale": ["IMAGE"],
    "CTSRSweep": ["IMAGE", "IMAGE"],
}


def test_the_host_imports_the_pack_from_a_folder_of_any_name(server):
    lines = [line for line in server.log.splitlines() if str(server.pack) in line]
    assert any("seconds" in line for line in lines)
    assert not any("FAILED" in line or "Cannot import" in line for line in lines)


def test_the_pack_brings_these_nodes_and_no_others(server):
    known = server.get("/object_info")
    module = f"custom_nodes.{server.pack.name}"
    assert {name for name, info in known.items() if info["python_module"] == module} == set(NODES)


@pytest.mark.parametrize("name", NODES)
def test_node_is_described(server, name):
    info = server.get(f"/object_info/{name}")[name]
    assert info["category"] == "CTSR"
    assert info["output"] == NODES[name]
    assert info["display_name"]
    assert info["description"]
    assert all(info["output_name"])
    assert all(info["output_tooltips"])
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    assert [key for key, spec in inputs.items() if not spec[1].get("tooltip")] == []


@pytest.mark.parametrize(("name", "key"), [("TradeoffT", "t"), ("TradeoffT", "t_inside"), ("CTSRUpscale", "t")])
def test_the_dial_is_a_slider_that_names_its_ends(server, name, key):
    kind, spec = server.get(f"/object_info/{name}")[name]["input"]["required"][key]
    assert (kind, spec["display"], spec["min"], spec["max"]) == ("FLOAT", "slider", 0, 1)
    assert "0 = most realistic" in spec["tooltip"]
    assert "1 = most faithful" in spec["tooltip"]


def test_starting_imports_neither_diffusers_nor_the_library(server, at_start):
    ours = [name for name in at_start["modules"] if name.startswith(str(server.pack).replace(".", "_x_"))]
    assert any(name.endswith(".nodes.load") for name in ours)
    assert not [name for name in ours if ".ctsr" in name]
    assert not {"diffusers", "peft"} & set(at_start["modules"])
