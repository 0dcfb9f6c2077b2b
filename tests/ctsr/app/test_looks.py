"""`ctsr compare` and `ctsr report`: pages that need nothing else, and sentences for input that cannot be looked at."""

import base64
import io
import json
import re

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ctsr.app.cli import app
from ctsr.assess.maps import heat
from ctsr.images.tensors import as_pil, resize

runner = CliRunner()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A picture, its enlargement, and one with a foreign square, in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(2)
    small = resize(torch.rand(1, 3, 16, 24, generator=generator), 64, 96).clamp(0, 1)
    large = resize(small, 256, 384).clamp(0, 1)
    as_pil(small).save("in.png")
    as_pil(large).save("out.png")
    large[..., 100:140, 200:260] = 0.0
    as_pil(large).save("odd.png")
    return tmp_path


def run(*arguments: str):
    return runner.invoke(app, list(arguments))


def pictures_of(page: str) -> dict[str, Image.Image]:
    found = re.search(r'<script type="application/json" id="pictures">(.*?)</script>', page, re.S)
    assert found
    sources = {picture["name"]: picture["source"].split(",")[1] for picture in json.loads(found[1])}
    return {name: Image.open(io.BytesIO(base64.b64decode(source))) for name, source in sources.items()}


def test_compare_holds_the_pictures_themselves_and_no_address(files):
    result = run("compare", "in.png", "out.png", "odd.png", "-o", "page.html")
    assert result.exit_code == 0, result.output
    page = (files / "page.html").read_text(encoding="utf-8")
    assert list(pictures_of(page)) == ["in.png", "out.png", "odd.png"]
    for name, picture in pictures_of(page).items():
        with Image.open(files / name) as original:
            assert picture.tobytes() == original.convert("RGB").tobytes()
    assert not re.search(r"https?:|src=[\"']?/|@import|url\(", page)
    assert "default-src 'none'" in page


def test_compare_leaves_out_where_a_photograph_was_taken(files):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    with Image.open("in.png") as image:
        image.save("in.jpg", exif=exif)
    assert run("compare", "in.jpg", "out.png", "-o", "page.html").exit_code == 0
    assert not pictures_of((files / "page.html").read_text(encoding="utf-8"))["in.jpg"].getexif()


def test_a_name_with_markup_stays_a_name(files):
    (files / "in.png").rename(files / "<b>$x&.png")
    assert run("compare", "<b>$x&.png", "out.png", "-o", "page.html").exit_code == 0
    page = (files / "page.html").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert "<b>$x&.png" in pictures_of(page)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.png"], "two pictures or more"),
        (["in.png", "gone.png"], "gone.png does not exist"),
        (["in.png", "turned.png"], "has not the shape of in.png"),
        (["in.png", "out.png", "-o", "page.png"], "ends in .html"),
        (["in.png", "out.png", "-o", "gone/page.html"], "no folder gone"),
    ],
)
def test_compare_says_what_is_wrong_and_writes_nothing(files, arguments, message):
    with Image.open("out.png") as image:
        image.rotate(90, expand=True).save("turned.png")
    result = run("compare", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(files.glob("*.html"))


def test_report_prints_findings_and_writes_page_and_numbers(files):
    result = run("report", "in.png", "odd.png", "--model", "none")
    assert result.exit_code == 0, result.output
    assert "foreign: at x " in result.output
    page = (files / "odd-report.html").read_text(encoding="utf-8")
    assert [picture.size for picture in pictures_of(page).values()] == [(96, 64)] + 4 * [(384, 256)]
    numbers = json.loads((files / "odd-report.json").read_text(encoding="utf-8"))
    left, top, right, bottom = next(x["box"] for x in numbers["findings"] if x["kind"] == "foreign")
    assert left < 230 < right
    assert top < 120 < bottom
    assert f'data-box="[{left}, {top}, {right}, {bottom}]"' in page


def test_report_is_quiet_on_an_enlargement_and_takes_a_model(files):
    result = run("report", "in.png", "out.png", "--model", "none")
    assert result.exit_code == 0
    assert "Nothing to report." in result.output
    assert run("report", "in.png", "out.png", "-o", "second.html").exit_code == 0
    assert (files / "second.json").exists()


def test_report_refuses_pictures_in_the_wrong_order_and_an_unknown_model(files):
    result = run("report", "out.png", "in.png", "--model", "none")
    assert result.exit_code == 2
    assert "smaller than its input" in result.output
    result = run("report", "in.png", "out.png", "--model", "gone.safetensors")
    assert result.exit_code == 2
    assert "gone.safetensors does not exist" in result.output
    assert not list(files.glob("*.html"))


def test_heat_grows_with_its_map():
    ramp = heat(torch.linspace(0, 1, 50).view(1, 1, 1, 50))
    brightness = ramp.mean(1).flatten()
    assert bool((brightness.diff() > 0).all())
    assert float(ramp.min()) >= 0
    assert float(ramp.max()) <= 1
