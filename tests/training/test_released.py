"""The built-in model is what the documents say it is."""

import re
from pathlib import Path

from ctsr import CTSRPipeline

ROOT = Path(__file__).parents[2]
STAGE = re.compile(r"python -m training\.stages\.(\w+) mini2")


def test_the_recipe_in_the_documents_is_that_of_the_released_file() -> None:
    stages = CTSRPipeline.mini().config["about"]["stages"].split(", ")
    text = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
    assert STAGE.findall(text[text.index("## The built-in model, command by command") :]) == stages
