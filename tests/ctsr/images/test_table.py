"""The table of docs/formats.md is what happens, and every loss in it is said."""

import pytest

from ctsr.images.exr import exr_works
from tests.ctsr.images.table import INPUTS, PAGE, rows, table


@pytest.mark.slow
def test_the_page_is_what_is_measured():
    page, suffixes = PAGE.read_text(encoding="utf-8"), list(INPUTS)
    if not exr_works():
        suffixes.remove(".exr")
        page = "".join(line for line in page.splitlines(keepends=True) if "| exr |" not in line)
    assert page == table(suffixes), "python -m tests.ctsr.images.table"


@pytest.mark.slow
def test_nothing_is_lost_without_a_word():
    for row in rows([".png", ".tif", ".jpg"], [suffix for suffix in INPUTS if suffix != ".exr" or exr_works()]):
        cells = row.cells
        deep, depth = (int(bits) for bits in cells["depth"].split(" → "))
        lost = [name for name in ("alpha", "ICC", "EXIF", "XMP", "IPTC", "DPI", "text") if cells[name] == "no"]
        assert (cells["said"] == "yes") == bool(lost or depth < deep or row.target == ".gif"), row
        assert cells["colour"] == "yes", row
        assert cells["frames"] in ("–", "yes", "refused"), row
