"""docs/options.md is what the dataclasses say, and says all that the command line takes."""

import dataclasses
import re
from pathlib import Path

import pytest

from spcl_fast.segmentation.commands.options import parse
from spcl_fast.segmentation.commands.options_page import (
    attribute_texts,
    commands_with_options,
    page,
)
from spcl_fast.segmentation.commands.table import load

PATH = Path(__file__).resolve().parents[3] / "docs" / "options.md"
MENTIONED = {"--root", "--config"}  # in the help of others
MADE_BY = "python -m spcl_fast.segmentation.commands.options_page > docs/options.md"


def test_the_page_is_current():
    assert PATH.read_text(encoding="utf-8") == page() + "\n", MADE_BY


@pytest.mark.parametrize(("name", "command"), list(commands_with_options()))
def test_every_option_of_the_command_line_is_on_the_page(name, command, capsys, monkeypatch):
    section = PATH.read_text("utf-8").partition(f"## spcl-fast {name}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `--")]
    listed = {row.split("`")[1].split(",")[0].split()[0] for row in rows}
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parse(load(command.config), name, ["--help"])
    found = set(re.findall(r"(?<![\w-])--[a-z0-9][\w.-]*\w", capsys.readouterr().out))
    taken = {x for x in found if "--no-" not in x.replace(".no-", "--no-")} - {"--help"}
    assert taken - MENTIONED <= listed
    assert listed - taken <= {"--preset", "--config", "--resume"}


def test_texts_of_attributes():
    @dataclasses.dataclass
    class Config:
        """First line.

        Attributes:
            one: A text: that goes
                on.
            two: Another.

        Raises:
            ValueError: Never.
        """

        one: int
        two: int

    assert attribute_texts(Config.__doc__) == {"one": "A text: that goes on.", "two": "Another."}
