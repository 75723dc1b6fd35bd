"""README's lines run, its commands exist, all tables are what the result files say."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

from spcl_fast.cli import COMMANDS, main

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENT_PATHS = (
    "README.md",
    *(f"docs/{name}.md" for name in ("benchmarks", "distributed", "kernels", "swap-in")),
    "docs/training.md",
)
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCUMENTS = {path: (REPOSITORY / path).read_text("utf-8") for path in DOCUMENT_PATHS}


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
    targets = re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)
    assert "test" in targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_commands_exist():
    named = set(re.findall(r"^spcl-fast ([a-z]+)", README, re.MULTILINE))
    assert {"pretrain", "finetune"} <= named <= set(COMMANDS)


@pytest.mark.parametrize("path", DOCUMENT_PATHS)
def test_tables_equal_their_results(path):
    tables = load_tables().DOCUMENTS[path]
    found = re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- /\1 -->", DOCUMENTS[path], re.DOTALL)
    assert [name for name, _ in found] == list(tables)
    for name, text in found:
        assert text == tables[name](), name


@pytest.mark.parametrize("path", DOCUMENT_PATHS)
def test_linked_files_exist(path):
    targets = re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[path])
    files = [target for target in targets if not target.startswith("http")]
    assert files
    for file in files:
        assert ((REPOSITORY / path).parent / file).exists(), file


# command: the module and function that does its work
WORK = {
    "pretrain": ("spcl_fast.segmentation.pretrain.loop", "pretrain"),
    "finetune": ("spcl_fast.segmentation.finetune.loop", "finetune"),
    "reproduce": ("spcl_fast.segmentation.commands.reproduce", "reproduce"),
    "audit": ("spcl_fast.segmentation.commands.audit", "audit"),
    "predict": ("spcl_fast.segmentation.commands.predict", "predict"),
    "export": ("spcl_fast.segmentation.commands.export", "export"),
}


class Result(list):
    """What a command returns that did nothing: no files, and no scans."""

    scans = ()


@pytest.mark.parametrize(
    "path", ["README.md", "docs/own-data.md", "docs/training.md", "docs/export.md"]
)
def test_documented_commands_are_understood(path, monkeypatch, capsys, tmp_path):
    (tmp_path / "start.yaml").write_text("data: {root: scans}\n")  # of data inspect --write
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / path).read_text(encoding="utf-8")
    lines = re.findall(r"^ *(spcl-fast .*?)(?:\s+#.*)?$", text, re.MULTILINE)
    seen = []
    for module, function in WORK.values():
        target = importlib.import_module(module)
        monkeypatch.setattr(
            target, function, lambda *args, **options: seen.append(args) or Result()
        )
    known = [line for line in lines if line.split()[1] in WORK]
    assert known
    for line in known:
        assert main(shlex.split(line)[1:]) == 0, line
    assert len(seen) == len(known)
