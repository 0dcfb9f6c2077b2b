"""Cancel, memory that runs out, models of others, and what stays behind after many prompts."""

import secrets
import shutil
import time
from typing import Any

import numpy as np
import pytest

from tests.comfyui import ComfyServer, Run
from tests.host.graphs import (
    SMALL,
    TINY,
    Prompt,
    five,
    free,
    fresh,
    mixed,
    node,
    one,
    refusal,
    saved,
    succeed,
    throttles,
)

MIXED = 40
"""Prompts in a row; `python -m benchmarks.comfyui mixed` queues 200."""
STAGES = ["encode", "unet", "decode"]


def altered(server: ComfyServer, prompt: Prompt, probe: str, **inputs: Any) -> Prompt:
    """The same, with a checkpoint of its own whose networks a probe changes."""
    path = server.base / "models" / "ctsr" / f"{secrets.token_hex(6)}.safetensors"
    shutil.copy(path.with_name(TINY), path)
    prompt["load"]["inputs"]["checkpoint"] = path.name
    prompt["altered"] = node(probe, model=["load", 0], **inputs)
    for key in {"encode", "unet", "upscale"} & set(prompt):
        prompt[key]["inputs"]["model"] = ["altered", 0]
    return prompt


# --- cancel -------------------------------------------------------------------------------------------------------


def cancelled(server: ComfyServer, prompt: Prompt, target: str) -> tuple[Run, float]:
    """Cancels when a network waits for it; also the share of its work that a node reported last."""
    with server.events() as events:
        run = Run(server.submit(prompt, events.client))
        while not server.get("/probe/waiting"):
            time.sleep(0.01)
        server.interrupt()
        run.events.extend(events.of(run.prompt_id))
    reports = [data["value"] / data["max"] for data in run.data("progress") if data["node"] == target]
    return run, max(reports, default=0.0)


@pytest.mark.parametrize("target", STAGES)
def test_interrupt_stops_within_one_tile(server, target):
    prompt = altered(server, fresh(five("hippo.png")), "ProbeWait", stage=target, calls=2)
    prompt[target]["inputs"]["tile"] = 256
    tiles = 12
    run, share = cancelled(server, prompt, target)
    assert run.ending == "execution_interrupted"
    assert run.data("execution_interrupted")[0]["node_type"] == prompt[target]["class_type"]
    assert share <= 3 / tiles
    succeed(server, fresh(five()))


@pytest.mark.parametrize("stage", STAGES)
def test_interrupt_stops_the_beginners_node_in_the_stage_at_work(server, stage):
    before = STAGES.index(stage)
    run, share = cancelled(server, altered(server, one(), "ProbeWait", stage=stage, calls=0), "upscale")
    assert run.ending == "execution_interrupted"
    assert share <= (before + 1) / len(STAGES), "no later stage began"
    assert "save" not in run.executed
    succeed(server, one(t=0.123))


def test_progress_rises_to_its_end_with_every_tile(server):
    prompt = fresh(five("hippo.png"))
    for target in ("encode", "unet", "decode"):
        prompt[target]["inputs"]["tile"] = 256
    run = succeed(server, prompt)
    for target in ("encode", "unet", "decode"):
        values = [data["value"] / data["max"] for data in run.data("progress") if data["node"] == target]
        assert len(values) >= (2 if throttles(server) else 12)  # tiles, and on a CPU the layers of each
        assert values == sorted(set(values))
        assert values[-1] == 1


# --- memory that runs out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [five, one])
def test_memory_that_runs_out_at_large_tiles_only(server, graph):
    source = "decode" if graph is five else "upscale"
    (whole,) = saved(server, graph("hippo.png"), [source, 0])
    warning = "Out of memory with the picture untiled: trying again"
    before = server.log.count(warning)
    (tiled,) = saved(server, altered(server, graph("hippo.png"), "ProbeLimit", pixels=700 * 700), [source, 0])
    assert server.log.count(warning) == before + 3, "encode, UNet, decode"
    np.testing.assert_allclose(tiled, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("graph", [five, one])
def test_memory_that_runs_out_at_every_tile(server, graph):
    message = refusal(server, altered(server, graph("hippo.png"), "ProbeLimit", pixels=0))
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
    for i in range(12):
        succeed(server, mixed(i))
    free(server)
    before = server.get("/probe")["resident"]
    for i in range(MIXED):
        succeed(server, mixed(i))
    after = server.get("/probe")["resident"]
    free(server)
    freed = server.get("/probe")["resident"]
    assert after < 1.1 * before
    assert freed < 1.1 * before
