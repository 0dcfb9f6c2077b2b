"""CTSRAutoT and CTSRReport in a real host: t goes over a link, maps become masks, wrong batches are one sentence."""

import numpy as np

from tests.host.graphs import five, node, put, refusal, succeed


def test_a_chosen_t_drives_the_dial_and_its_reasons_are_text(server):
    prompt = five()
    prompt["auto"] = node("CTSRAutoT", image=["picture", 0])
    prompt["dial"]["inputs"]["t"] = ["auto", 0]
    prompt["text"] = node("PreviewAny", source=["auto", 1])
    run = succeed(server, prompt)
    assert "so t = " in str(run.outputs["text"])


def test_what_was_added_can_be_the_mask_of_the_dial(server):
    prompt = five()
    prompt["report"] = node("CTSRReport", image=["picture", 0], result=["decode", 0])
    prompt["again"] = node("TradeoffT", endpoints=["unet", 0], t=0.0, t_inside=1.0, feather=32, mask=["report", 0])
    prompt["second"] = node("TiledVAEDecode", vae=["load", 1], latent=["again", 0], tile=0, color_fix="none")
    prompt["save"]["inputs"]["images"] = ["second", 0]
    prompt["maps"] = node("SaveImage", images=["report", 2], filename_prefix="maps")
    prompt["text"] = node("PreviewAny", source=["report", 3])
    run = succeed(server, prompt)
    assert "departs from the input by" in str(run.outputs["text"])
    assert len(run.outputs["maps"]["images"]) == 2


def test_batches_that_differ_are_one_sentence(server):
    prompt = five()
    prompt["two"] = put(server, np.zeros((2, 8, 8, 3), np.float32))
    prompt["report"] = node("CTSRReport", image=["two", 0], result=["decode", 0])
    prompt["maps"] = node("SaveImage", images=["report", 2], filename_prefix="maps")
    assert "connect one for each" in refusal(server, prompt)
