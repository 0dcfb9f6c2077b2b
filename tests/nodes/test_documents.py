"""Help pages and locales against the schemas: no host is needed."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.schemas import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
DOCS, LOCALES = ROOT / "web" / "docs", ROOT / "locales"
LANGUAGES = ("en", "zh", "ja")
DEFAULT = {"en": "default", "zh": "默认值", "ja": "既定値"}
OWN_LETTERS = {"zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff]"}

EACH_NODE = pytest.mark.parametrize("node", SCHEMAS)
EACH_LANGUAGE = pytest.mark.parametrize("language", LANGUAGES)
EACH_TRANSLATION = pytest.mark.parametrize("language", OWN_LETTERS)


def page_path(node: str, language: str) -> Path:
    """The frontend looks for <node>/<language>.md, then for <node>.md: so English serves every other language too."""
    return DOCS / (f"{node}.md" if language == "en" else f"{node}/{language}.md")


def page(node: str, language: str) -> str:
    return page_path(node, language).read_text(encoding="utf-8")


def locale(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def tables(text: str) -> list[dict[str, str]]:
    """Every table without its head: first `name` of a row -> the row."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [{row.split("`")[1]: row for row in block.splitlines()[2:]} for block in blocks]


def quoted_errors(text: str) -> list[str]:
    return re.findall(r"^- `([^`]+)`(?:: |：)", text, re.MULTILINE)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"-?\d+(?:\.\d+)?", text))


def strings(entry: Any) -> Iterator[str]:
    """All texts of a nested dictionary."""
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values():
            yield from strings(inner)


def test_there_are_exactly_the_pages_of_the_nodes():
    assert set(DOCS.rglob("*.md")) == {page_path(node, language) for node in SCHEMAS for language in LANGUAGES}


@EACH_NODE
@EACH_LANGUAGE
def test_tables_of_a_page_list_inputs_and_outputs(node: str, language: str):
    inputs, outputs = tables(page(node, language))
    assert set(inputs) == {entry["id"] for entry in SCHEMAS[node]["inputs"]}
    assert list(outputs) == [entry["display_name"] for entry in SCHEMAS[node]["outputs"]]


@EACH_NODE
@EACH_LANGUAGE
def test_a_page_gives_ranges_options_and_defaults_of_the_schema(node: str, language: str):
    rows = tables(page(node, language))[0]
    for entry in SCHEMAS[node]["inputs"]:
        row = rows[entry["id"]]
        told = [entry[key] for key in ("min", "max", "default") if entry.get(key) is not None]
        choices = {x for x in (*told, *(entry.get("options") or ())) if isinstance(x, str)}
        limits = {f"{x:g}" for x in told if not isinstance(x, str) and x < 2**32}  # a seed's is written as a power
        assert limits <= numbers(row)
        if isinstance(entry.get("default"), int | float) and not isinstance(entry["default"], bool):
            said = re.search(rf"{DEFAULT[language]}\s*([-\d.]+)", row)
            assert said is not None
            assert float(said[1]) == entry["default"]
        assert all(f"`{choice}`" in row for choice in choices)


@EACH_NODE
@EACH_TRANSLATION
def test_a_translated_page_has_the_sections_and_errors_of_the_english_one(node: str, language: str):
    english, translated = page(node, "en"), page(node, language)
    assert translated.count("\n## ") == english.count("\n## ")
    assert translated.count("\n- ") == english.count("\n- ")
    assert quoted_errors(translated) == quoted_errors(english)


@pytest.fixture(scope="module")
def texts_of_the_sources() -> str:
    """Every string of nodes and library."""
    sources = [path for folder in ("nodes", "ctsr") for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources]
    constants = [part.value for tree in trees for part in ast.walk(tree) if isinstance(part, ast.Constant)]
    return "\n".join(constant for constant in constants if isinstance(constant, str))


@EACH_NODE
def test_errors_that_a_page_quotes_are_those_of_the_sources(node: str, texts_of_the_sources: str):
    names = "|".join(entry["id"] for entry in SCHEMAS[node]["inputs"])
    errors = quoted_errors(page(node, "en"))
    assert errors
    for error in errors:
        parts = re.sub(rf"^(?:{names}) (?=(?:is|holds) …)", "", error).split("…")  # whose name the check is told
        assert all(part.strip() in texts_of_the_sources for part in parts), error


@EACH_LANGUAGE
def test_a_locale_names_exactly_the_nodes_inputs_and_outputs(language: str):
    entries = locale(language)
    assert list(entries) == list(locale("en"))
    assert set(entries) == set(SCHEMAS)
    for node, schema in SCHEMAS.items():
        assert set(entries[node]) == {"display_name", "description", "inputs", "outputs"}
        assert set(entries[node]["inputs"]) == {entry["id"] for entry in schema["inputs"]}
        assert list(entries[node]["outputs"]) == [str(i) for i in range(len(schema["outputs"]))]
        for entry in (*entries[node]["inputs"].values(), *entries[node]["outputs"].values()):
            assert set(entry) == {"name", "tooltip"}
    assert all(strings(entries))


@EACH_NODE
def test_the_english_locale_says_what_the_schema_says(node: str):
    schema, entry = SCHEMAS[node], locale("en")[node]
    assert (entry["display_name"], entry["description"]) == (schema["display_name"], schema["description"])
    assert entry["inputs"] == {x["id"]: {"name": x["id"], "tooltip": x["tooltip"]} for x in schema["inputs"]}
    assert list(entry["outputs"].values()) == [
        {"name": x["display_name"], "tooltip": x["tooltip"]} for x in schema["outputs"]
    ]


@EACH_NODE
@EACH_TRANSLATION
def test_a_translation_keeps_the_numbers_and_is_in_its_language(node: str, language: str):
    pairs = list(zip(strings(locale("en")[node]), strings(locale(language)[node]), strict=True))
    assert all(numbers(english) <= numbers(translated) for english, translated in pairs)
    sentences = [translated for _, translated in pairs if translated.endswith("。")]
    assert len(sentences) > len(pairs) // 3
    for text in (*sentences, page(node, language)):
        assert re.search(OWN_LETTERS[language], text)


@EACH_LANGUAGE
def test_no_locale_text_holds_what_the_frontend_reads_as_a_message_format(language: str):
    assert not [text for text in strings(locale(language)) if re.search(r"[{}|@]", text)]


@EACH_LANGUAGE
def test_pages_and_locales_name_nodes_as_the_canvas_does(language: str):
    """Ids of nodes are for prompts; a user sees display names."""
    ids = re.compile(rf"\b(?:{'|'.join(SCHEMAS)}|(?:Load|Join)Image\w*|VAE[A-Z][a-z]\w*)(?![A-Za-z])")
    texts = [*strings(locale(language)), *(page(node, language) for node in SCHEMAS)]
    assert [found[0] for text in texts for found in ids.finditer(text)] == []
