"""`ctsr app`: what its page does, and that the page is for this machine alone."""

import base64
import io
import re
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from ctsr.app import gui
from ctsr.app.gui import Answers, Studio, view_of
from ctsr.app.lazy_pipeline import LazyPipeline
from ctsr.assess.auto_t import Choice
from ctsr.errors import CTSRError, ImageReadError
from ctsr.images.painted import read_painted


@pytest.fixture
def studio(tiny_mini_file, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    return Studio(LazyPipeline(str(tiny_mini_file), "fp32", torch.device("cpu")), folder)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def brush(box: tuple[int, int, int, int] | None) -> str:
    image = Image.new("RGBA", (256, 192))
    if box is not None:
        image.paste((255, 255, 255, 255), box)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_the_decode_behind_a_dragged_t_is_the_pipelines(studio, photo):
    restored = studio.restore(photo, 4)
    expected = studio.model.pipeline(Image.open(photo), t=0.3, output_type="pt").images
    assert torch.equal(studio.result(restored, 0.3, ""), expected)
    assert torch.equal(restored.realistic, studio.result(restored, 0.0, ""))
    assert torch.equal(restored.faithful, studio.result(restored, 1.0, ""))


def test_what_is_painted_is_faithful_and_the_rest_is_not(studio, photo):
    restored = studio.restore(photo, 4)
    left = studio.result(restored, 0.0, brush((0, 0, 128, 192)))
    assert torch.allclose(left[..., :20], restored.faithful[..., :20], atol=0.05)
    assert not torch.allclose(restored.realistic[..., :20], restored.faithful[..., :20], atol=0.05)
    assert torch.allclose(studio.result(restored, 0.4, brush(None)), studio.result(restored, 0.4, ""), atol=1e-4)


def test_saved_pictures_keep_metadata_and_settings(studio, photo):
    restored = studio.restore(photo, 2)
    file = studio.save(restored, studio.result(restored, 0.25, ""), 0.25)
    with Image.open(file) as image:
        assert image.size == (64, 48)
        assert image.getexif()[0x010F] == "a camera"
        assert '"t": 0.25' in image.text["ctsr"]
    assert file.endswith("a photo-ctsr.png")
    assert str(studio.folder) in file


def test_automatic_t_and_report_are_text(studio, photo):
    restored = studio.restore(photo, 4)
    choice, _ = studio.automatic(restored)
    assert 0 <= choice.t <= 1
    assert choice.reasons
    assert "departs from the input by" in studio.report(restored, restored.faithful)


def test_the_report_is_of_the_picture_on_the_page_not_of_the_sliders_t(studio, photo, monkeypatch):
    restored, answers = studio.restore(photo, 4), Answers(studio, None)
    monkeypatch.setattr(studio, "report", lambda restored, result: result)
    assert torch.equal(answers.assess(restored, "auto", ""), studio.automatic(restored)[1])
    assert torch.equal(answers.assess(restored, 0.3, ""), studio.result(restored, 0.3, ""))
    painted = brush((0, 0, 128, 192))
    assert torch.equal(answers.assess(restored, 0.3, painted), studio.result(restored, 0.3, painted))


@pytest.mark.parametrize("raised", [False, True])
def test_the_picture_shown_with_the_reasons_is_the_one_that_they_are_of(studio, photo, raised, monkeypatch):
    """Where places are raised too, which a small picture has none of."""
    pipe, t_map = studio.model.pipeline, torch.linspace(0, 1, 32).expand(24, 32)
    choice = Choice(0.4, ("noisy",), t_map if raised else None)
    monkeypatch.setattr(type(pipe), "choose_t", lambda *given: choice)
    chosen, shown = studio.automatic(studio.restore(photo, 4))
    dial = {"t_map": t_map} if raised else {"t": 0.4}
    assert chosen is choice
    assert torch.equal(shown, pipe(Image.open(photo), output_type="pt", **dial).images)


def test_the_stage_lays_pictures_of_one_size_over_each_other(studio, photo):
    restored = studio.restore(photo, 4)
    html = view_of(restored, restored.faithful)
    sources = re.findall(r'class="ctsr-(\w+)"[^>]*src="data:image/png;base64,([^"]+)"', html)
    assert [name for name, _ in sources] == ["realistic", "faithful", "painted", "exact", "input"]
    assert {Image.open(io.BytesIO(base64.b64decode(data))).size for _, data in sources} == {(128, 96)}
    assert not re.search(r"https?:", html)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), 1e9])
def test_a_scale_that_cannot_be_is_refused(studio, photo, scale):
    with pytest.raises(ValueError, match=r"scale|keep each side"):
        studio.restore(photo, scale)


def test_a_bad_file_is_one_sentence_without_the_servers_folder(studio, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    with pytest.raises(ImageReadError, match="not a picture"):
        studio.restore(bad, 4)


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "data:image/png;base64,!!", "data:image/png;base64,AAAA", "/etc/passwd"]
)
def test_only_a_png_in_the_address_itself_is_taken_as_painted(address):
    with pytest.raises(ValueError, match="clear it and paint again"):
        read_painted(address)


def test_a_huge_brush_is_refused():
    buffer = io.BytesIO()
    Image.new("RGBA", (3000, 3000)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="too large"):
        read_painted("data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode())


def test_without_gradio_the_message_names_the_extra(studio, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(gui.importlib, "import_module", missing)
    with pytest.raises(CTSRError, match=r'pip install "ctsr\[app\]"'):
        gui.build(studio)


def test_the_page_is_for_this_machine_gives_no_files_and_names_no_other_server(studio):
    pytest.importorskip("gradio", reason='pip install "ctsr[app]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = gui.launch(studio, port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as answer:
            html = answer.read().decode()
        assert "ctsr" in html
        assert not re.search(r"""(?:src|href)=["']https?://(?!127\.0\.0\.1)[^"']*fonts""", html)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/gradio_api/file=/etc/passwd", timeout=20)
        others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
        for address in others - {"127.0.0.1"}:
            with pytest.raises(OSError), socket.create_connection((address, port), timeout=2):  # noqa: PT011
                pass
    finally:
        page.close(verbose=False)
