"""The page of a complete folder of runs, and of folders with missing or damaged pieces."""

import base64
import json
import os
import re
from html.parser import HTMLParser

import pytest
import yaml

from spcl_fast.segmentation.report import write_report

SECTIONS = (
    "What was run",
    "Results",
    "Reproduction of the paper",
    "What the networks predict",
    "Fine-tuning",
    "Pre-training",
    "Self-paced weights",
    "Embedding",
    "Meta-labels",
    "Noise audit",
    "Configurations",
)


class Reader(HTMLParser):
    """Collects headings, tables, addresses and the sentences about missing pieces."""

    def __init__(self, html):
        super().__init__()
        self.headings, self.tables, self.addresses, self.images = [], [], [], []
        self.missing, self.verdicts, self.captions, self.scripts = [], [], [], 0
        self._sink = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.scripts += tag == "script"
        self.addresses += [attrs[k] for k in ("src", "href", "srcset", "action") if k in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        lists = {"h2": self.headings, "figcaption": self.captions}
        lists |= {"p": {"missing": self.missing, "verdict": self.verdicts}.get(attrs.get("class"))}
        lists |= dict.fromkeys(("td", "th"), self.tables[-1][-1] if tag in ("td", "th") else None)
        if lists.get(tag) is not None:
            self._sink = lists[tag]
            self._sink.append("")

    def handle_endtag(self, tag):
        if tag in ("h2", "td", "th", "p", "figcaption"):
            self._sink = None

    def handle_data(self, data):
        if self._sink is not None:
            self._sink[-1] += data


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def test_every_section_is_there_and_nothing_is_missing(full_page):
    page = read(full_page)
    assert tuple(page.headings) == SECTIONS
    assert page.missing == []
    # label efficiency, reproduction, overlays, fine-tuning, pre-training, weights, embedding,
    # meta-labels, and two of the audit
    assert len(page.images) == 10
    assert len(page.captions) == len(page.images) + len(page.tables)
    assert all(len(caption) > 40 for caption in page.captions)
    assert all(image["alt"] for image in page.images)


def test_page_is_self_contained(full_page):
    page = read(full_page)
    assert page.scripts == 0
    assert page.addresses
    assert page.images
    for address in page.addresses:
        assert address.startswith(("data:image/png;base64,", "#"))
    for image in page.images:
        png = base64.b64decode(image["src"].partition(",")[2], validate=True)
        assert png.startswith(b"\x89PNG")
    style = re.search(r"<style>(.*?)</style>", full_page.read_text(), re.S)[1]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style


def test_tables_hold_the_numbers_of_evaluation_json(full_page, full_runs):
    arms, pairs, runs = read(full_page).tables[1:4]
    rows = {row[0]: row for row in runs[1:]}
    assert len(rows) == 4
    for name, row in rows.items():
        evaluation = json.loads((full_runs / name / "evaluation.json").read_text())
        dice = [*evaluation["dice"].values(), evaluation["dice_mean"]]
        hd95 = list(evaluation["hd95_mm"].values())
        hd95.append(sum(hd95) / 3)
        assert row[2] == evaluation["labelled_scans"][0]
        assert row[3:7] == [f"{value:.3f}" for value in dice]
        assert row[7:] == [f"{value:.1f}" for value in hd95]
    # the fixture's Dice: scratch .525 in the mean of classes and scans, then + .05 and + .06
    assert [row[2:] for row in pairs[1:]] == [
        ["0.525", "0.575", "+0.050", "+0.050 to +0.050", "4"],
        ["0.525", "0.585", "+0.060", "+0.060 to +0.060", "4"],
    ]
    assert [row[6] for row in arms[1:]] == ["0.525 \u00b1 0.000", "0.580 \u00b1 0.007"]


def test_first_sentence(full_page):
    (sentence,) = read(full_page).verdicts
    # of two gains .05 and .06 a quarter of the resampled pairs is twice the one or the other
    assert "0.525 from scratch, 0.580 pre-trained (position), +0.055" in sentence
    assert "(95 % interval +0.050 to +0.060; up in" in sentence
    assert "up in 2 of 2 pairs" in sentence
    assert sentence.startswith("Pre-training gave more, in too few pairs of runs to tell it from")


@pytest.mark.usefixtures("undrawn")
def test_only_a_pretraining(pretrain_folder, tmp_path):
    (pretrain_folder / "embedding.npz").unlink()
    page = read(write_report(pretrain_folder, tmp_path / "report.html"))
    assert page.verdicts == [
        "No fine-tuning run has been evaluated yet, so there is no Dice to report."
    ]
    text = " ".join(page.missing)
    assert "position has no embedding yet." in text
    assert "It has no embedding.npz (unfinished)" in text
    assert len(page.images) == 2
    # what there is nothing to show of is absent
    assert page.headings[1:-2] == ["Pre-training", "Self-paced weights"]


def test_only_a_finetuning_that_is_cut_off(finetune_folder, tmp_path):
    (finetune_folder / "evaluation.json").unlink()
    with open(finetune_folder / "metrics.jsonl", "a") as log:
        log.write('{"kind": "step", "step": 110, "lo')
    page = read(write_report(finetune_folder.parent, tmp_path / "report.html"))
    text = " ".join(page.missing)
    assert "scratch: It has no evaluation.json" in text
    assert page.headings[1:-2] == ["Fine-tuning"]
    assert "metrics.jsonl" not in text
    assert len(page.images) == 1
    assert page.tables[0][1][4] == "100"


@pytest.mark.usefixtures("undrawn")
def test_predictions_that_are_not_there(finetune_folder, tmp_path):
    for path in finetune_folder.glob("*_prediction.nii.gz"):
        path.unlink()
    page = read(write_report(finetune_folder.parent, tmp_path / "report.html"))
    (sentence,) = (text for text in page.missing if "A picture is missing" in text)
    assert "_prediction.nii.gz must be an existing" in sentence
    assert not any("predictions on file" in text for text in page.missing)
    assert len(page.tables) == 4
    assert page.tables[3][1][0] == "patient002_frame12"  # the lowest Dice


@pytest.mark.usefixtures("undrawn")
def test_no_predictions_on_file(add_finetune, tmp_path):
    add_finetune("scratch", None, 0.0)
    page = read(write_report(tmp_path / "runs", tmp_path / "report.html"))
    assert any("No evaluated run has predictions on file" in text for text in page.missing)


@pytest.mark.usefixtures("undrawn")
def test_a_run_without_scores_is_in_no_mean(add_finetune, tmp_path):
    add_finetune("scratch", None, 0.0)
    evaluation = add_finetune("other", "pre", 0.1) / "evaluation.json"
    content = json.loads(evaluation.read_text())
    for row in content["scans"].values():
        row["dice"] = dict.fromkeys(row["dice"])
    evaluation.write_text(json.dumps(content))
    path = write_report(tmp_path / "runs", tmp_path / "report.html")
    words = re.sub(r'src="[^"]*"', "", path.read_text())
    assert not re.search(r"\bnan\b", words, re.IGNORECASE)
    (sentence,) = read(path).verdicts
    assert sentence.startswith("Mean 3-D Dice from scratch is 0.525 (one run), HD95 9.5 mm; no")
    assert any("other: Its evaluation.json cannot be read" in text for text in read(path).missing)


@pytest.mark.usefixtures("undrawn")
def test_data_sets_grids_and_protocols_are_never_joined(add_finetune, tmp_path):
    changes = {
        "a": {"root": "/scans/acdc"},
        "b": {"root": None, "grid": {"size": 96, "spacing_mm": 2.0}},
        "c": {"root": None},
    }
    for name, data in changes.items():
        path = add_finetune(name, "pre", 0.1) / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"data": data}))
    page = read(write_report(tmp_path / "runs", tmp_path / "report.html"))
    names = ["acdc", "generated phantom, 96 x 96 of 2.0 mm", "generated phantom"]
    assert [text for text in page.headings if text.startswith("Results")] == [
        f"Results: {name}" for name in names
    ]
    assert [text.partition(": ")[0] for text in page.verdicts] == names
    assert all("run from scratch to compare it with" in text for text in page.verdicts)
    means = [table for table in page.tables if table[0][0] == "Arm"]
    assert [len(table) - 1 for table in means] == [1, 1, 1]


def test_one_pair_has_a_figure_of_its_own_and_a_table_of_cases(add_finetune, tmp_path):
    folder = add_finetune("scratch", None, 0.0)
    start = {"command": "spcl-fast finetune", "torch": "2.9", "threads": 3, "gpu": "H100"}
    (folder / "provenance.json").write_text(json.dumps([start]))
    add_finetune("after", "pre", 0.1)
    page = read(write_report(tmp_path / "runs", tmp_path / "report.html"))
    assert page.images[0]["alt"] == "Dice of every test scan"
    png = base64.b64decode(page.images[0]["src"].partition(",")[2])
    assert int.from_bytes(png[16:20], "big") < 600  # pixels wide
    (cases,) = (table for table in page.tables if table[0][0] == "Scan")
    assert cases[0][2:4] == ["Dice from scratch", "Dice pre-trained (pre)"]
    assert [row[2:4] for row in cases[1:]] == [
        [f"{0.45 + 0.05 * k:.3f}", f"{0.55 + 0.05 * k:.3f}"] for k in range(4)
    ]
    assert ", HD95 9.5 mm from scratch, 8.5 mm pre-trained (pre); one pair" in page.verdicts[0]
    assert page.tables[1][1] == [
        *("scratch", "spcl-fast finetune", "torch 2.9", "H100, 3 threads", "-")
    ]


@pytest.mark.usefixtures("undrawn")
def test_names_are_escaped(finetune_folder, tmp_path):
    config = finetune_folder / "config.yaml"
    config.write_text("stage: finetune\nname: <script>alert(1)</script>\n")
    (finetune_folder / "metrics.jsonl").unlink()
    (finetune_folder / "evaluation.json").unlink()
    page = read(write_report(finetune_folder, tmp_path / "report.html"))
    assert page.scripts == 0
    assert page.tables[0][1][0] == "<script>alert(1)</script>"
    assert any("It has no metrics.jsonl" in text for text in page.missing)


@pytest.mark.usefixtures("undrawn")
def test_a_failed_write_keeps_the_old_page(finetune_folder, tmp_path, monkeypatch):
    output = tmp_path / "page" / "report.html"
    output.parent.mkdir()
    output.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(finetune_folder, output)
    assert output.read_text() == "old"
    assert list(output.parent.iterdir()) == [output]


def test_folders_without_runs(tmp_path):
    with pytest.raises(ValueError, match="found none in"):
        write_report(tmp_path, tmp_path / "report.html")
    (tmp_path / "config.yaml").write_text("stage: neither\n")
    with pytest.raises(ValueError, match="found none in"):
        write_report(tmp_path, tmp_path / "report.html")
    with pytest.raises(ValueError, match="runs must be a folder, got"):
        write_report(tmp_path / "absent", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
