"""What the frontend shows of the pack beside the canvas: help pages and the template browser."""

import re
from pathlib import Path

import pytest

from tests.browser.browser import Browser
from tests.browser.conftest import SIZE
from tests.comfyui import ROOT, ComfyServer

pytestmark = pytest.mark.browser

NODE = "Upscale & Restore (CTSR Super Resolution)"
BLUEPRINT = next((ROOT / "subgraphs").glob("*.json")).stem


def first_words(page: Path) -> str:
    """First sentence of a help page's text, without its Markdown."""
    lines = page.read_text(encoding="utf-8").splitlines()
    text = next(line for line in lines if line and not line.startswith(("#", "!", "|", "<")))
    return re.sub(r"[*_`]", "", text).split(". ")[0]


def test_the_info_button_shows_a_nodes_help_page(browser: Browser):
    workflow = (ROOT / "examples" / "Upscale in one node.json").read_text(encoding="utf-8")
    browser.drop("Upscale in one node.json", workflow)
    (page,) = (ROOT / "web" / "docs").glob("CTSRUpscale.md")
    assert first_words(page) in browser.help("CTSRUpscale")


def test_the_template_browser_lists_every_example_with_its_picture(browser: Browser, server: ComfyServer):
    templates = browser.templates(server.pack.name)
    assert sorted(templates) == sorted(path.stem for path in (ROOT / "examples").glob("*.json"))
    assert all(width > 0 for width in templates.values())


def has_large_picture(browser: Browser) -> bool:
    """Whether a node shows the enlarged picture."""
    return [4 * SIZE[0], 4 * SIZE[1]] in [size for shown in browser.pictures() for size in shown["sizes"]]


def test_a_template_leads_to_the_enlarged_picture_in_four_presses(browser: Browser, server: ComfyServer):
    before = browser.presses()
    graph = browser.choose(server.pack.name, "Upscale in one node")
    assert graph.missing == []
    assert browser.run().ending == "execution_success"
    assert browser.presses() - before <= 4
    assert has_large_picture(browser)


@pytest.mark.parametrize(("text", "name"), [("restore", NODE), ("upscale", BLUEPRINT)], ids=["node", "blueprint"])
def test_the_search_leads_from_a_pasted_picture_to_the_enlarged_one_in_four_presses(
    browser: Browser, server: ComfyServer, text: str, name: str
):
    browser.begin()
    before = browser.presses()
    browser.paste((server.base / "input" / "example.png").read_bytes())
    found = [browser.follow("Load Image", text, name), browser.follow(name, "save image", "Save Image")]
    assert browser.run().ending == "execution_success"
    assert browser.presses() - before - sum(one["missed"] for one in found) == 4 + sum(one["placed"] for one in found)
    assert all(one["placed"] <= 1 for one in found)
    assert has_large_picture(browser)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("super resolution", NODE),
        ("restore", NODE),
        ("upscale video", "Upscale Video (CTSR Super Resolution)"),
        ("faithful", "Tradeoff t, Realistic to Faithful (CTSR)"),
    ],
)
def test_the_search_box_finds_our_nodes_first(browser: Browser, text: str, name: str):
    assert name in browser.search(text)[:3]
