"""What the host runs again when an input changes."""

import shutil

from tests.host.graphs import TINY, five, fresh, linked, succeed


def test_moving_the_dial_runs_the_dial_and_what_follows_only(server):
    prompt = fresh(five(t=0.2))
    first = succeed(server, prompt)
    assert {"encode", "unet", "dial", "decode", "save"} <= set(first.executed)
    prompt["dial"]["inputs"]["t"] = 0.8
    second = succeed(server, prompt)
    assert second.cached == {"load", "picture", "encode", "unet"}
    assert second.executed == ["dial", "decode", "save"]
    assert first.outputs["save"] != second.outputs["save"]


def test_nothing_changed_runs_nothing(server):
    prompt = fresh(five())
    succeed(server, prompt)
    assert succeed(server, prompt).executed == []


def test_a_checkpoint_that_was_replaced_is_loaded_anew(server, make_mini):
    path = server.base / "models" / "ctsr" / "replaced.safetensors"
    shutil.copy(path.with_name(TINY), path)
    prompt = five(checkpoint=path.name)
    first = succeed(server, prompt)
    make_mini(seed=7).save_single_file(path)
    second = succeed(server, prompt)
    assert "load" in second.executed
    assert "decode" in second.executed
    assert first.outputs["save"] != second.outputs["save"]


def test_a_linked_checkpoint_is_loaded_once(server):
    prompt = linked(five(), "load.checkpoint", TINY)
    succeed(server, prompt)
    prompt["dial"]["inputs"]["t"] = 0.9
    assert succeed(server, prompt).executed == ["dial", "decode", "save"]
