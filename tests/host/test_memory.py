"""Cancel, memory that runs out, models of others, and what stays behind after many prompts."""

import shutil
from typing import Any

import numpy as np
import pytest

from tests.comfyui import ComfyServer, Run
from tests.host.graphs import SMALL, TINY, Prompt, five, fresh, node, one, refusal, saved, succeed

MIXED = 40
"""Prompts in a row; 200 took the host from 1144 to 1157 MiB."""
ROOM = 2**40
"""Pixels that never run out."""


def limited(server: ComfyServer, prompt: Prompt, name: str, pixels: int, seconds: float = 0) -> Prompt:
    """The same, with a checkpoint of its own whose networks are slow or short of memory."""
    path = server.base / "models" / "ctsr" / f"{name}.safetensors"
    shutil.copy(path.with_name(TINY), path)
    prompt["load"]["inputs"]["checkpoint"] = path.name
    prompt["limit"] = node("ProbeLimit", model=["load", 0], pixels=pixels, seconds=seconds)
    for key in {"encode", "unet", "upscale"} & set(prompt):
        prompt[key]["inputs"]["model"] = ["limit", 0]
    return prompt


# --- cancel -------------------------------------------------------------------------------------------------------


def interrupted(server: ComfyServer, prompt: Prompt, target: str, after: int) -> tuple[Run, float]:
    """Interrupts at progress event number `after` of a node; also the share of the node's work reported after it."""
    with server.events() as events:
        run = Run(server.submit(prompt, events.client))
        seen = list[float]()
        for event in events.of(run.prompt_id):
            run.events.append(event)
            if event["type"] == "progress" and event["data"]["node"] == target:
                seen.append(event["data"]["value"] / event["data"]["max"])
                if len(seen) == after:
                    server.interrupt()
    return run, seen[-1] - seen[after - 1]


@pytest.mark.parametrize("target", ["encode", "unet", "decode"])
def test_interrupt_stops_within_one_tile(server, target):
    prompt = limited(server, fresh(five("hippo.png")), "slow", ROOM, 0.3)
    prompt[target]["inputs"]["tile"] = 256  # 12 tiles, and on a CPU an event for every layer of each
    run, more = interrupted(server, prompt, target, 2)
    assert run.ending == "execution_interrupted"
    assert run.data("execution_interrupted")[0]["node_type"] == prompt[target]["class_type"]
    assert more < 1.01 / 12
    succeed(server, fresh(five()))


def test_interrupt_stops_the_beginners_node_between_stages(server):
    prompt = limited(server, one(t=0.123), "slow-one", ROOM, 0.3)
    run, more = interrupted(server, prompt, "upscale", 1)
    assert run.ending == "execution_interrupted"
    assert more < 0.9
    succeed(server, prompt)


def test_progress_rises_to_its_end_with_every_tile(server):
    prompt = fresh(five("hippo.png"))
    for target in ("encode", "unet", "decode"):
        prompt[target]["inputs"]["tile"] = 256
    run = succeed(server, prompt)
    for target in ("encode", "unet", "decode"):
        values = [data["value"] / data["max"] for data in run.data("progress") if data["node"] == target]
        assert len(values) >= 12  # tiles, and on a CPU the layers of each
        assert values == sorted(set(values))
        assert values[-1] == 1


# --- memory that runs out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [five, one])
def test_memory_that_runs_out_at_large_tiles_only(server, graph):
    source = "decode" if graph is five else "upscale"
    (whole,) = saved(server, graph("hippo.png"), [source, 0])
    warning = "Out of memory with the picture untiled: trying again"
    before = server.log.count(warning)
    (tiled,) = saved(server, limited(server, graph("hippo.png"), "short", 700 * 700), [source, 0])
    assert server.log.count(warning) == before + 3, "encode, UNet, decode"
    np.testing.assert_allclose(tiled, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("graph", [five, one])
def test_memory_that_runs_out_at_every_tile(server, graph):
    message = refusal(server, limited(server, graph("hippo.png"), "none", 0))
    assert message.startswith("Out of memory even with tiles of 32 cells")
    assert "choose a smaller scale" in message
    assert "\n" not in message


# --- models of others ---------------------------------------------------------------------------------------------


def simulated(server: ComfyServer, probe: str) -> list[Any]:
    """What a probe with a device of limited memory noted."""
    prompt = {"picture": node("LoadImage", image=SMALL), probe: node(probe, checkpoint=TINY, image=["picture", 0])}
    return succeed(server, prompt).outputs[probe]["steps"]


def test_models_take_turns_on_a_device_that_holds_one(server):
    *steps, end = simulated(server, "ProbeEviction")
    here, ours = {"Sequential": "cpu:0"}, {"CTSRAutoencoder": "cpu:0"}
    # The UNet has gone for the decoder by then, as the other model has; and comes back for the next picture.
    assert steps == [here, ours, here, ours]
    assert end == {"picture": True, "other": True, "offload": "cpu"}


def test_idle_models_of_others_go_when_memory_runs_out(server):
    before, after = simulated(server, "ProbeRoom")
    assert set(before) == {"Sequential", "CTSRAutoencoder", "CTSRNetwork"}
    assert set(after) == {"CTSRNetwork"}


def test_checkpoints_that_are_no_longer_used_are_dropped(server):
    for i in range(4):
        path = server.base / "models" / "ctsr" / f"copy-{i}.safetensors"
        shutil.copy(path.with_name(TINY), path)
        succeed(server, five(checkpoint=path.name))
    assert server.get("/probe")["models"] <= 2, "the last one, and the built-in one that is kept"
    assert "memory leak" not in server.log


# --- many prompts -------------------------------------------------------------------------------------------------


def test_prompts_in_a_row_leave_no_memory_behind(server):
    def turn(i: int) -> None:
        succeed(server, fresh(five("hippo.png" if i % 2 else "mural.jpg", t=i % 3 / 2, scale=2.0)))

    for i in range(6):
        turn(i)
    before = server.get("/probe")["resident"]
    for i in range(20):
        turn(i)
    # A result and its 8-bit copy are 2.8 MiB; latents, endpoints and the pictures before them come to that.
    assert server.get("/probe")["resident"] - before < 40 * 2**20


def test_mixed_prompts_leave_no_memory_behind_and_free_gives_it_back(server):
    def turn(i: int) -> None:
        checkpoint = "tiny-sd.safetensors" if i % 3 else TINY
        prompt = fresh(five(checkpoint=checkpoint, t=i % 5 / 4)) if i % 2 else one(checkpoint=checkpoint, t=i % 7 / 6)
        succeed(server, prompt)

    for i in range(12):
        turn(i)
    server.post("/free", {"unload_models": True, "free_memory": True})
    succeed(server, fresh(five()))
    before = server.get("/probe")["resident"]
    for i in range(MIXED):
        turn(i)
    after = server.get("/probe")["resident"]
    server.post("/free", {"unload_models": True, "free_memory": True})
    succeed(server, fresh(five()))
    freed = server.get("/probe")["resident"]
    assert after < 1.1 * before
    assert freed < 1.1 * before
