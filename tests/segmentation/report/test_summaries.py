"""audit.json and reproduction.json: what is shown, and one sentence for what cannot be."""

import json
from dataclasses import replace

import pytest

from spcl_fast.segmentation.report import write_report
from spcl_fast.segmentation.report.efficiency import efficiency_picture, labelled_count
from spcl_fast.segmentation.report.noise_audit import audit_table
from spcl_fast.segmentation.report.reproduction import reproduction_table
from spcl_fast.segmentation.report.reproduction_record import count_order
from spcl_fast.segmentation.report.runs import find_runs
from spcl_fast.segmentation.report.summaries import find_audits, find_reproductions


def test_the_table_of_an_audit(full_runs):
    found, problems = find_audits(full_runs)
    audit = found["audit.json"]
    assert problems == []
    assert audit.noise == (0.0, 0.1, 0.4)
    rows = {(row[0], row[1]): row[2:] for row in audit_table(audit).rows}
    assert len(rows) == 9
    # auc of fpr ** (.5 / 2): .8; dice .6 - .2 + .1 + .00, .01, .02 for each of two seeds
    linear = ["2", "0.800 \u00b1 0.000", "0.705 \u00b1 0.007", "0.60 \u00b1 0.00"]
    assert rows["40%", "linear"] == [*linear, "0.510 \u00b1 0.009", "+0.100", "+0.080 to +0.120"]
    assert rows["0%", "none (plain SupCon)"][1:3] == ["-", "-"]
    assert rows["0%", "none (plain SupCon)"][-1] == "-"


def test_the_table_of_a_reproduction(full_runs):
    found, problems = find_reproductions(full_runs)
    result = found["reproduction.json"]
    assert problems == []
    assert result.title == "acdc, spcl protocol, cpu scale"
    rows = {(row[0], row[1]): row[2:] for row in reproduction_table(result).rows}
    ours = ["51.0 (1.0)", "3"]  # .50, .51, .52
    assert rows["Labelled scans only", "1"] == ["-", *ours, "-"]
    assert rows["Mix-up", "1"] == ["61.9 (1.3)", "53.0 (1.0)", "3", "+2.0 (+1.0 to +3.0), 2/3"]
    assert ("Mix-up", "all") not in rows
    assert rows["Self-paced, semi", "all"][0] == "-"


# torn, no object, no list, an empty list, rows that are no rows
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"rows": [', "cannot be read"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"rows": 3, "methods": 3}', "has no list of"),
        ('{"rows": [], "methods": []}', "so it is not"),
        ('{"rows": [3], "methods": [{"name": 2}]}', "left out"),
    ],
)
@pytest.mark.parametrize(
    ("name", "find"), [("audit", find_audits), ("reproduction", find_reproductions)]
)
def test_malformed_files_are_named(tmp_path, name, find, text, sentence):
    (tmp_path / f"{name}.json").write_text(text)
    found, problems = find(tmp_path)
    assert found == {}
    assert sentence in problems[0]
    assert all(name in problem for problem in problems)
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert f'<p class="missing">{name}.json ' in page or f" of {name}.json " in page
    assert "<h2>Noise audit</h2>" not in page
    assert "<h2>Reproduction of the paper</h2>" not in page


# every value that may be absent or of another type, one at a time
@pytest.mark.parametrize(
    "damage",
    [
        None,
        {"1": "x"},
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("text", -1, [], {}, {"1": [1]}, [None])
        ),
    ],
)
def test_no_value_breaks_the_page(full_runs, tmp_path, damage):
    for name, key in (("audit", "rows"), ("reproduction", "methods")):
        content = json.loads((full_runs / f"{name}.json").read_text())
        items = content[key]
        fields = sorted({field for item in items for field in item} - {"pace", "key"})
        for item, field in zip(items, fields, strict=False):
            item[field] = damage
        for field in set(content) - {key}:
            content[field] = damage
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    page = write_report(tmp_path, tmp_path / "report.html").read_text()
    assert page.count("<table>") >= 2


def test_all_is_the_number_of_training_scans(full_runs):
    run = next(run for run in find_runs(full_runs)[0] if run.evaluation is not None)
    assert labelled_count(run) == "1"
    scans = tuple(f"scan{k}" for k in range(12))
    run.evaluation = replace(run.evaluation, labelled_scans=scans)
    assert labelled_count(run) == "all"
    assert efficiency_picture({}) is None
    assert "with all training scans labelled" in efficiency_picture({"a": [run]}).caption
    run.evaluation = replace(run.evaluation, num_training_scans=None)
    assert labelled_count(run) == "12"
    assert "no line of full supervision" in efficiency_picture({"a": [run]}).caption


def test_counts_are_sorted_as_numbers():
    assert sorted(["all", "10", "2", "1"], key=count_order) == ["1", "2", "10", "all"]
