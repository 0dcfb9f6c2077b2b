"""docs/api.md names what `ctsr` exports, with the present signatures."""

import re

import ctsr
from tests.ctsr.api import PAGE, page


def test_the_page_names_exactly_what_is_exported():
    names = re.findall(r"^- `(\w+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert names == ctsr.__all__


def test_the_page_is_made_of_the_code():
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.ctsr.api"
