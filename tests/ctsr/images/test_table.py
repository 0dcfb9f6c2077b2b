"""The table of docs/formats.md is what happens, and every loss in it is said."""

import pytest

from tests.ctsr.images.table import PAGE, rows, table


@pytest.mark.slow
def test_the_page_is_what_is_measured():
    assert PAGE.read_text(encoding="utf-8") == table(), "python -m tests.ctsr.images.table"


@pytest.mark.slow
def test_nothing_is_lost_without_a_word():
    for row in rows([".png", ".tif", ".jpg"]):
        cells = row.cells
        deep, depth = (int(bits) for bits in cells["depth"].split(" → "))
        lost = [name for name in ("alpha", "ICC", "EXIF", "XMP", "IPTC", "DPI", "text") if cells[name] == "no"]
        assert (cells["said"] == "yes") == bool(lost or depth < deep or row.target == ".gif"), row
        assert cells["colour"] == "yes", row
        assert cells["frames"] in ("–", "yes", "refused"), row
