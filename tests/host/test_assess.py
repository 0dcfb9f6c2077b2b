"""CTSRAutoT and CTSRReport in a real host: t goes over a link, maps become masks, wrong batches are one sentence."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from ctsr import CTSRPipeline
from tests.host.graphs import MINI, SMALL, five, node, picture_of, put, refusal, saved, succeed


def test_a_chosen_t_drives_the_dial_and_its_reasons_are_text(server):
    prompt = five()
    prompt["auto"] = node("CTSRAutoT", image=["picture", 0])
    prompt["dial"]["inputs"]["t"] = ["auto", 0]
    prompt["text"] = node("PreviewAny", source=["auto", 1])
    run = succeed(server, prompt)
    assert "on average" in str(run.outputs["text"])


def test_t_by_place_goes_over_a_mask_and_gives_what_the_library_does(server):
    prompt = five(checkpoint=MINI)
    prompt["auto"] = node("CTSRAutoT", image=["picture", 0], endpoints=["unet", 0], vae=["load", 1])
    prompt["dial"]["inputs"] |= {"t": 0.0, "t_inside": 1.0, "feather": 0, "mask": ["auto", 2]}
    prompt["text"] = node("PreviewAny", source=["auto", 1])
    run = succeed(server, prompt)
    assert "on average" in str(run.outputs["text"])
    made = np.asarray(Image.open(picture_of(server, run)), np.int16)
    picture = Image.open(server.base / "input" / SMALL)
    ours = np.asarray(CTSRPipeline.mini()(picture, t="auto").images[0], np.int16)
    assert np.abs(made - ours).max() <= 2


def one_node(**inputs):
    prompt = five(checkpoint=MINI)
    wanted = {"picture": prompt["picture"], "save": prompt["save"]}
    wanted["auto"] = node("CTSRAutoT", image=["picture", 0])
    wanted["up"] = node("CTSRUpscale", image=["picture", 0], t=0.5, scale=4.0, color_fix="none", **inputs)
    wanted["save"]["inputs"]["images"] = ["up", 0]
    return wanted


def test_the_node_for_everything_takes_t_by_place(server):
    mapped = np.asarray(Image.open(picture_of(server, succeed(server, one_node(t_map=["auto", 2])))), np.int16)
    plain = np.asarray(Image.open(picture_of(server, succeed(server, one_node()))), np.int16)
    prompt = five(checkpoint=MINI, color_fix="none")
    prompt["auto"] = node("CTSRAutoT", image=["picture", 0])
    prompt["dial"]["inputs"] |= {"t": 0.0, "t_inside": 1.0, "feather": 0, "mask": ["auto", 2]}
    stepwise = np.asarray(Image.open(picture_of(server, succeed(server, prompt))), np.int16)
    assert np.abs(mapped - stepwise).max() <= 1
    assert np.abs(mapped - plain).max() > 1, "t = 0.5 is not used"


def test_pictures_of_a_batch_have_a_map_each(server):
    prompt = one_node(t_map=["maps", 0])
    prompt["pair"] = node("RepeatImageBatch", image=["picture", 0], amount=2)
    prompt["maps"] = put(server, np.stack([np.zeros((28, 40)), np.ones((28, 40))]).astype(np.float32))
    prompt["up"]["inputs"]["image"] = ["pair", 0]
    (both,) = saved(server, prompt, ["up", 0])
    assert np.abs(both[0] - both[1]).max() > 0.01
    for made, t in zip(both, (0.0, 1.0), strict=True):
        alone = one_node()
        alone["up"]["inputs"]["t"] = t
        np.testing.assert_allclose(made, saved(server, alone, ["up", 0])[0][0], atol=1e-5)


def test_the_mask_of_a_picture_without_alpha_is_no_map(server):
    prompt = one_node(t_map=["picture", 1])
    made = np.asarray(Image.open(picture_of(server, succeed(server, prompt))))
    assert np.array_equal(made, np.asarray(Image.open(picture_of(server, succeed(server, one_node())))))


def test_a_map_of_another_picture_is_one_sentence(server):
    prompt = one_node(t_map=["mask", 0])
    prompt["mask"] = node("SolidMask", value=1.0, width=64, height=16)
    assert "t_map is 64x16, which has not the proportions" in refusal(server, prompt)


def test_endpoints_of_other_pictures_or_without_a_vae_are_one_sentence(server):
    prompt = five()
    prompt["auto"] = node("CTSRAutoT", image=["picture", 0], endpoints=["unet", 0])
    prompt["text"] = node("PreviewAny", source=["auto", 1])
    assert "connect the VAE of Load CTSR too" in refusal(server, prompt)
    prompt["two"] = put(server, np.zeros((2, 28, 40, 3), np.float32))
    prompt["auto"] = node("CTSRAutoT", image=["two", 0], endpoints=["unet", 0], vae=["load", 1])
    assert "endpoints are of 1 pictures, but image has 2" in refusal(server, prompt)


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


def dial_prompt(t: float, painted: str = ""):
    prompt = five()
    for name in ("dial", "decode"):
        del prompt[name]
    prompt["live"] = node(
        "CTSRDial", vae=["load", 1], endpoints=["unet", 0], t=t, painted=painted, tile=0, color_fix="none"
    )
    prompt["save"]["inputs"]["images"] = ["live", 0]
    return prompt


def brush() -> str:
    image, buffer = Image.new("RGBA", (64, 64), (255, 255, 255, 255)), io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_the_live_dial_refuses_endpoints_of_another_checkpoint(server):
    prompt = dial_prompt(0.5)
    prompt["other"] = node("LoadCTSR", checkpoint=MINI, precision="fp32", attention="auto")
    prompt["live"]["inputs"]["vae"] = ["other", 1]
    assert "connect both to the same Load CTSR" in refusal(server, prompt)


def test_the_live_dial_gives_the_picture_at_t_and_both_ends_for_the_page(server):
    def told(t: float, painted: str = ""):
        run = succeed(server, dial_prompt(t, painted))
        (shown,) = run.outputs["live"]["ctsr_dial"]
        return np.asarray(Image.open(picture_of(server, run))).astype(int), shown

    realistic, first = told(0.0)
    faithful, second = told(1.0)
    painted, third = told(0.0, brush())
    assert first["realistic"] == second["realistic"] == third["realistic"], "both ends are decoded once"
    assert {"realistic", "faithful", "exact", "input"} <= first.keys()
    assert np.abs(realistic - faithful).max() > 2
    assert np.abs(painted - faithful).max() <= 1, "all of it was painted"
    plain = five(t=0.0)
    plain["decode"]["inputs"]["color_fix"] = "none"
    assert np.abs(np.asarray(Image.open(picture_of(server, succeed(server, plain)))).astype(int) - realistic).max() <= 1


def test_a_page_that_is_loaded_again_is_told_what_the_dial_shows(server):
    if "has_intermediate_output" not in server.get("/object_info/CTSRDial")["CTSRDial"]:
        pytest.skip("this host keeps what output nodes show, and of no others")
    first = succeed(server, dial_prompt(0.25))
    again = succeed(server, dial_prompt(0.25))
    assert again.executed == []
    assert again.outputs["live"] == first.outputs["live"]
    assert "live" in {data["node"] for data in again.data("executed")}


def test_a_painting_that_is_none_is_one_sentence(server):
    assert "clear it and paint again" in refusal(server, dial_prompt(0.5, "/etc/passwd"))
