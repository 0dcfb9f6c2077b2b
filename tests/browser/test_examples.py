"""The shared workflows as a user meets them: dropped on the canvas, run, looked at, changed, run again."""

import io
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.browser.browser import Browser
from tests.browser.conftest import SIZE, run_video
from tests.comfyui import ROOT, ComfyServer

pytestmark = pytest.mark.browser

EXAMPLES = sorted((ROOT / "examples").glob("*.json"))
RELEASED = sorted((ROOT / "tests" / "nodes" / "workflows").glob("*/*.json"))
VIDEO_EXAMPLE = ROOT / "examples" / "Upscale a video.json"
PICTURES = [path for path in EXAMPLES if path != VIDEO_EXAMPLE]
LARGE = [4 * side for side in SIZE]


def load(path: Path) -> dict[str, Any]:
    """A workflow."""
    return json.loads(path.read_text(encoding="utf-8"))


def drop(browser: Browser, path: Path) -> None:
    """Drops an example, all of whose nodes the host must have."""
    graph = browser.drop(path.name, path.read_text(encoding="utf-8"))
    assert graph.missing == []
    assert sorted(graph.types) == sorted(node["type"] for node in load(path)["nodes"])


def node_id(path: Path, node_type: str) -> str:
    """Id of an example's only node of a type."""
    (node,) = [node for node in load(path)["nodes"] if node["type"] == node_type]
    return str(node["id"])


def results(browser: Browser) -> list[dict[str, Any]]:
    """What output nodes show."""
    return [shown for shown in browser.pictures() if shown["type"] in ("SaveImage", "PreviewImage")]


def fetch(url: str) -> bytes:
    """A file of the host, as the page gets it."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


def layer(dial: dict[str, Any], name: str) -> Image.Image:
    """One of the pictures that lie over each other on the live dial."""
    return Image.open(io.BytesIO(fetch(dial["urls"][name]))).convert("RGB")


def contrast(picture: Image.Image) -> float:
    """Mean standard deviation of the channels, 0 to 255; an empty node has less than 10."""
    return sum(ImageStat.Stat(picture).stddev) / 3


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_dropped_workflow_runs_and_shows_its_pictures(browser: Browser, path: Path):
    drop(browser, path)
    run = browser.run()
    assert run.ending == "execution_success"
    shown = results(browser)
    assert len(shown) == sum(node["type"] in ("SaveImage", "PreviewImage") for node in load(path)["nodes"])
    assert LARGE in [size for node in shown for size in node["sizes"]]
    for node in shown:
        assert contrast(browser.look(node["title"])) > 15


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_workflow_of_an_earlier_release_keeps_its_values_and_runs(browser: Browser, path: Path):
    drop(browser, path)
    for node in load(path)["nodes"]:
        saved = [slot["name"] for slot in node["inputs"] if "widget" in slot]
        shown = browser.widgets(node["type"]) if saved else {}
        assert list(shown)[: len(saved)] == saved
        assert [shown[name] for name in saved] == node.get("widgets_values", [])
    assert browser.run().ending == "execution_success"


def test_the_video_example_runs_as_shipped(browser: Browser, server: ComfyServer):
    drop(browser, VIDEO_EXAMPLE)
    run = browser.run()
    assert run.ending == "execution_success"
    ((video,),) = [output["images"] for output in run.executed.values()]
    made = json.loads(run_video(server, "read", server.output(video)))
    assert (made["width"], made["height"], made["frames"]) == (2 * SIZE[0], 2 * SIZE[1], 3)


def test_a_loaded_video_is_enlarged_with_its_sound_and_speed(browser: Browser, server: ComfyServer):
    drop(browser, VIDEO_EXAMPLE)
    browser.add("LoadVideo", {"file": "example.mp4"})
    browser.connect([("LoadVideo", "VIDEO", "CTSRUpscaleVideo", "video")])
    run = browser.run()
    assert run.ending == "execution_success"
    ((video,),) = [output["images"] for output in run.executed.values()]
    before = json.loads(run_video(server, "read", server.base / "input" / "example.mp4"))
    after = json.loads(run_video(server, "read", server.output(video)))
    assert (after["width"], after["height"]) == (2 * SIZE[0], 2 * SIZE[1])
    assert (after["frames"], after["fps"]) == (before["frames"], before["fps"])
    assert after["seconds"] == pytest.approx(before["seconds"], abs=0.2)


def test_moving_the_dial_decodes_again_and_nothing_before_it(browser: Browser):
    path = ROOT / "examples" / "Upscale step by step.json"
    drop(browser, path)
    assert browser.run().ending == "execution_success"
    (before,) = results(browser)
    assert browser.slide("TradeoffT", "t", 1.0) == pytest.approx(1, abs=0.02)
    run = browser.run()
    assert run.ending == "execution_success"
    kept, redone = ("LoadCTSR", "LoadImage", "TimeAwareEncode", "OneStepSRUNet"), ("TradeoffT", "TiledVAEDecode")
    assert {node_id(path, name) for name in kept} <= run.cached
    assert not {node_id(path, name) for name in redone} & run.cached
    (after,) = results(browser)
    assert fetch(before["urls"][0]) != fetch(after["urls"][0])


def test_the_live_dial_shows_another_t_at_once_and_the_next_run_gives_that_picture(browser: Browser):
    drop(browser, ROOT / "examples" / "Drag t on the picture.json")
    assert browser.run().ending == "execution_success"
    first = browser.dial()
    assert (first["word"], first["exact"]) == ("exact", 1)
    t = browser.slide("CTSRDial", "t", 0.8)
    dragged = browser.dial()
    assert dragged["heard"] == first["heard"]
    assert len(dragged["moves"]) > len(first["moves"])
    assert (dragged["word"], dragged["exact"]) == ("preview", 0)
    assert dragged["faithful"] == pytest.approx(t, abs=1e-3)
    previewed = Image.blend(layer(dragged, "realistic"), layer(dragged, "faithful"), t)
    assert browser.run().ending == "execution_success"
    after = browser.dial()
    assert (after["word"], after["exact"]) == ("exact", 1)
    apart = ImageChops.difference(previewed, layer(after, "exact"))
    assert max(ImageStat.Stat(apart).mean) < 0.5
    assert (
        max(most for _, most in ImageStat.Stat(apart).extrema) <= 8
    )  # where the ends are black or white, each was cut off by itself


def test_a_mask_of_other_proportions_is_explained_in_a_dialog(browser: Browser):
    path = ROOT / "examples" / "Keep a face faithful with a mask.json"
    drop(browser, path)
    browser.add("SolidMask", {"width": 320, "height": 64})
    browser.connect([("SolidMask", "MASK", "TradeoffT", "mask")])
    assert browser.run().ending == "execution_error"
    text = browser.dialog()
    browser.dismiss()
    assert "mask is 320x64" in text
    assert "connect the mask of the same picture" in text
    drop(browser, path)
    assert browser.run().ending == "execution_success"


def test_the_blueprint_is_listed_and_runs_where_it_is_placed(browser: Browser):
    (blueprint,) = (ROOT / "subgraphs").glob("*.json")
    drop(browser, ROOT / "examples" / "Upscale in one node.json")
    graph = browser.place(blueprint.stem)
    assert graph.missing == []
    browser.connect([("LoadImage", "IMAGE", blueprint.stem, "image"), (blueprint.stem, "image", "SaveImage", "images")])
    assert browser.run().ending == "execution_success"
    (before,) = results(browser)
    assert before["sizes"] == [LARGE]
    assert browser.slide(blueprint.stem, "t", 1.0) == pytest.approx(1, abs=0.02)
    assert browser.run().ending == "execution_success"
    (after,) = results(browser)
    assert fetch(before["urls"][0]) != fetch(after["urls"][0])
