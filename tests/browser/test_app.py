"""`ctsr app` in a browser: choose, drag t, paint, compare, zoom, report, save; bad files; two users; the end."""

import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from ctsr import CTSRPipeline
from ctsr.assess.report import lines, report
from tests.browser.app import DIRECT, App, AppServer
from tests.browser.browser import Tools
from tests.comfyui import ROOT

pytestmark = pytest.mark.browser
SIZE = (48, 36)
LARGE = (192, 144)


def picture(name: str = "kudu.jpg") -> bytes:
    """A small photograph as a PNG."""
    buffer = io.BytesIO()
    with Image.open(ROOT / "examples" / "images" / name) as image:
        image.resize(SIZE).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    pytest.importorskip("gradio", reason='pip install "ctsr[app]"')
    with AppServer(tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture(scope="module")
def pages(server: AppServer, tools: Tools) -> Iterator[App]:
    with App(tools, server) as pages:
        pages.open("ann")
        pages.choose("ann", "kudu.png", picture())
        assert pages.upscale("ann") is None
        yield pages


@pytest.fixture
def app(pages: App) -> Iterator[App]:
    """The page with a picture that is enlarged; fails a test during which its console complained."""
    yield pages
    assert pages.call("complaints", "ann") == []


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)[None] / 255


def departs(text: str) -> float:
    """By how much a report says that a result departs from its input."""
    return float(re.findall(r"departs from the input by: (\d+\.?\d*)", text)[0])


def largest_difference(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())


def blend(app: App, t: float) -> Image.Image:
    """What the browser shows while t is dragged: the faithful picture over the realistic one, with opacity t."""
    return Image.blend(app.layer("ann", "realistic"), app.layer("ann", "faithful"), t)


def test_a_chosen_picture_is_shown_exactly_with_automatic_t_and_its_reasons(app: App):
    state = app.state("ann")
    assert state["title"] == f"kudu.png: {LARGE[0]}x{LARGE[1]}"
    assert 0 <= state["t"] <= 1
    assert state["reasons"]
    assert (state["word"], state["exact"]) == ("exact", 1)
    assert app.layer("ann", "exact").size == LARGE


def test_the_report_of_automatic_t_is_of_the_picture_that_was_saved_with_it(app: App):
    app.call("key", "ann", "Tab", False)  # a slider that is passed by is not moved
    app.call("report", "ann")
    _, saved = app.save("ann")
    assert json.loads(saved.info["ctsr"])["t"] == "auto"
    small = Image.open(io.BytesIO(picture()))
    found = report(*map(pixels_of, (small, saved, app.layer("ann", "faithful"))))
    assert departs(app.state("ann")["report"]) == pytest.approx(departs("\n".join(lines(found))), rel=0.02)


def test_dragging_t_changes_the_picture_at_once_and_asks_nothing_of_the_server(app: App):
    state = app.drag("ann", 0.3, 0.9, 0.75)
    assert state["t"] == pytest.approx(0.75, abs=0.03)
    assert state["opacity"] == pytest.approx(state["t"], abs=1e-3)
    assert (state["word"], state["exact"]) == ("preview", 0)
    assert state["asked"] == []
    assert (app.state("ann")["word"], app.state("ann")["exact"]) == ("exact", 1)


def test_arrow_keys_move_t_to_an_exact_picture_and_other_keys_change_nothing(app: App):
    before = app.drag("ann", 0.4)["t"]
    app.call("key", "ann", "ArrowRight", True)
    assert app.state("ann")["t"] == pytest.approx(before + 0.01)
    _, saved = app.save("ann")
    assert json.loads(saved.info["ctsr"])["t"] == pytest.approx(before + 0.01)
    assert largest_difference(saved.convert("RGB"), app.layer("ann", "exact")) == 0
    app.call("key", "ann", "Shift", False)
    assert app.state("ann")["word"] == "exact"


def test_the_exact_picture_is_the_previewed_blend_and_the_pipelines(app: App):
    t = app.drag("ann", 0.2)["t"]
    shown = app.layer("ann", "exact")
    assert largest_difference(shown, blend(app, t)) <= 3
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(picture())))).movedim(-1, 0)[None]
    (expected,) = CTSRPipeline.mini("auto")(pixels, t=t).images
    assert largest_difference(shown, expected) <= 1


def test_what_is_painted_becomes_faithful_there_until_it_is_cleared(app: App):
    app.drag("ann", 0.0)
    before = app.layer("ann", "exact")
    app.call("paint", "ann", (0.1, 0.5), (0.4, 0.5))
    painted, faithful = app.layer("ann", "exact"), app.layer("ann", "faithful")
    inside, outside = (48, 70, 72, 74), (130, 0, 192, 144)
    assert largest_difference(painted.crop(inside), faithful.crop(inside)) <= 3
    assert largest_difference(painted.crop(outside), before.crop(outside)) <= 2
    assert largest_difference(painted, before) > 8
    app.call("press", "ann", "Clear what was painted (paint on the picture: faithful there)")
    app.drag("ann", 0.05, 0.0)
    assert largest_difference(app.layer("ann", "exact"), before) <= 1


def test_the_input_slides_over_the_result_and_zoom_is_one_or_three_pixels_a_pixel(app: App):
    app.call("compare", "ann", 60)
    assert app.state("ann")["cut"] == "inset(0px 40% 0px 0px)"
    app.call("compare", "ann", 0)
    for name, width in (("1:1", LARGE[0]), ("3:1", 3 * LARGE[0])):
        app.call("press", "ann", name)
        assert app.state("ann")["width"] == pytest.approx(width)
    app.call("press", "ann", "fit")


def test_the_report_is_of_the_shown_picture(app: App):
    app.call("report", "ann")
    assert "departs from the input by" in app.state("ann")["report"]


def test_the_saved_file_is_the_shown_picture_and_says_how_it_was_made(app: App):
    t = app.drag("ann", 0.6)["t"]
    name, saved = app.save("ann")
    assert name == "kudu-ctsr.png"
    assert largest_difference(saved.convert("RGB"), app.layer("ann", "exact")) == 0
    assert json.loads(saved.info["ctsr"])["t"] == pytest.approx(t)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("notes.png", b"no picture at all", "not a picture"),
        ("cut.png", picture()[:400], "cut.png"),
        ("empty.jpg", b"\0", "empty.jpg"),
    ],
)
def test_a_bad_file_is_one_sentence_without_a_path_and_the_next_picture_works(app, server, name, data, message):
    app.choose("ann", name, data)
    told = app.upscale("ann")
    assert told is not None
    assert message in told
    assert str(server.temporary) not in told
    assert "Traceback" not in told
    app.call("complaints", "ann")
    app.choose("ann", f"after-{name}.png", picture())
    assert app.upscale("ann") is None
    assert app.state("ann")["title"].startswith(f"after-{name}.png")


def test_two_users_at_once_each_have_their_own_picture_and_t(app: App):
    app.choose("ann", "kudu.png", picture())
    assert app.upscale("ann") is None
    app.open("bob")
    app.choose("bob", "mural.png", picture("mural.jpg"))
    assert app.upscale("bob") is None
    app.drag("ann", 0.1)
    app.drag("bob", 0.9)
    assert app.state("ann")["title"].startswith("kudu")
    assert app.state("bob")["title"].startswith("mural")
    assert app.state("ann")["t"] < 0.2 < 0.8 < app.state("bob")["t"]
    assert largest_difference(app.layer("ann", "exact"), app.layer("bob", "exact")) > 30
    assert app.save("bob")[0] == "mural-ctsr.png"
    assert app.save("ann")[0] == "kudu-ctsr.png"


def test_it_listens_on_the_loopback_address_alone_and_speaks_to_nobody(app: App, server: AppServer):
    connections = psutil.Process(server.process.pid).net_connections("inet")
    assert {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    assert {each.raddr.ip for each in connections if each.raddr} <= {"127.0.0.1"}
    outside = [url for url in app.call("asked", "ann") if not url.startswith((server.url, "data:", "blob:"))]
    assert outside == []


def test_a_path_from_the_page_is_not_read(server: AppServer, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [file, 4], "session_hash": "x"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/gradio_api/run/upscale", body, headers)
    with pytest.raises(urllib.error.HTTPError):
        DIRECT.open(request, timeout=30)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        DIRECT.open(f"{server.url}/gradio_api/file={secret}", timeout=30)


def test_no_file_is_left_when_it_ends(tools: Tools, tmp_path):
    pytest.importorskip("gradio", reason='pip install "ctsr[app]"')
    with AppServer(tmp_path) as server, App(tools, server) as pages:
        pages.open("ann")
        pages.choose("ann", "kudu.png", picture())
        assert pages.upscale("ann") is None
        pages.save("ann")
        assert server.files()
    assert server.files() == []
