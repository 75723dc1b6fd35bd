"""README's lines run, its commands exist, its tables are what the result files say."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from spcl_fast.cli import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def load_tables():
    """Import benchmarks.readme_tables from the repository, wherever the tests run."""
    sys.path.insert(0, str(REPOSITORY))
    try:
        return importlib.import_module("benchmarks.readme_tables")
    finally:
        sys.path.remove(str(REPOSITORY))


def test_ten_lines_run(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    loss, mean_weight, num_anchors, norm = map(float, capsys.readouterr().out.split())
    assert 0 < loss < 20
    assert 0 < mean_weight < 1
    assert num_anchors == 4096
    assert norm > 0
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_make_targets_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_commands_exist():
    assert set(re.findall(r"^spcl-fast ([a-z]+)", README, re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.parametrize("name", ["losses", "one_scan"])  # every generated table
def test_tables_equal_their_results(name):
    (table,) = re.findall(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", README, re.DOTALL)
    assert table == load_tables().TABLES[name]()


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (REPOSITORY / target).exists(), target
