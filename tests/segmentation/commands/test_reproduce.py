"""The grids: the paper's comparison and the noise audit on a small phantom, their tables."""

import json
from concurrent.futures import Executor, Future
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import yaml

from spcl_fast.segmentation.commands import audit as audit_module
from spcl_fast.segmentation.commands import grid_runs, method_table
from spcl_fast.segmentation.commands import reproduce as module
from spcl_fast.segmentation.commands.audit import AuditConfig, audit
from spcl_fast.segmentation.commands.comparison import ReproduceConfig
from spcl_fast.segmentation.commands.method_table import markdown
from spcl_fast.segmentation.commands.methods import (
    ENCODERS,
    METHODS,
    PAPER,
    encoder_config,
    method_config,
)
from spcl_fast.segmentation.commands.reproduce import reproduce
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.phantom import PhantomConfig, write_phantom
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.label_noise import auc
from spcl_fast.segmentation.report.reproduction_record import Reproduction
from spcl_fast.segmentation.runs.config import ConfigError, preset_path, stage_config
from spcl_fast.segmentation.runs.dataset import protocol_split, split_scans

# The tests of report/ look at the pixels.
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def small_preset(preset_file, monkeypatch):
    for grid in (module, audit_module):
        monkeypatch.setattr(grid, "preset_path", lambda name: preset_file)


@pytest.fixture
def leave_out_the_page(monkeypatch):
    """A function from which on no report is written, where another of such runs has been."""
    return lambda: monkeypatch.setattr(method_table, "write_report", lambda *paths: None)


class ThisProcess(Executor):
    """Runs at once and quietly what it is given: no process that imports everything again."""

    def __init__(self, *arguments):
        pass

    def submit(self, function, *arguments):
        future = Future()
        with redirect_stderr(StringIO()):
            future.set_result(function(*arguments))
        return future


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr(grid_runs, "ProcessPoolExecutor", ThisProcess)


@pytest.fixture
def labelled(monkeypatch):
    """The phantom has patients 1 to 6; the protocol trains on 2 to 6 and tests on 1."""

    def split(data):
        found = protocol_split(data)
        names = {scan.name: scan for scan in found.train}
        pair = [names["patient002_frame01"], names["patient003_frame01"]]
        counts = {1: pair[:1], 2: pair}
        return replace(found, labelled=counts, incomplete={4: "lacks patient067 ES"})

    monkeypatch.setattr(module, "protocol_split", split)


@pytest.mark.slow
def test_grid_table_and_resumption(
    small_preset, labelled, one_process, leave_out_the_page, phantom, tmp_path, capfd
):
    methods = ("scratch", "teacher", "position", "self_paced", "ours")
    config = ReproduceConfig(
        "acdc", phantom, tmp_path / "out", seeds=2, methods=methods, labelled=("1", "all"), jobs=2
    )
    table = reproduce(config)
    said = capfd.readouterr().err
    assert "failed" not in said
    assert said.count("cases are missing") == 1
    result = json.loads((config.out / "reproduction.json").read_text())
    rows = {row["key"]: row for row in result["methods"]}
    assert set(rows) == set(methods)
    folder = config.out / "10-1-teacher"
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert rows["teacher"]["dice"]["1"][0] == evaluation["dice_mean"]
    assert evaluation["labelled_scans"] == ["patient002_frame01"]
    assert {s["patient"] for s in evaluation["scans"].values()} == {"patient001"}
    assert len(rows["ours"]["dice"]["1"]) == 2
    assert "all" not in rows["teacher"]["dice"]
    whole = json.loads((config.out / "10-all-scratch" / "evaluation.json").read_text())
    assert len(whole["labelled_scans"]) == whole["num_training_scans"] == 10
    ours, scratch = rows["ours"]["dice"]["1"], rows["scratch"]["dice"]["1"]
    pair = result["paired"]["ours"]["1"]
    assert pair["by_run"] == pytest.approx(np.subtract(ours, scratch).tolist())
    paced, plain = rows["self_paced"]["dice"], rows["position"]["dice"]
    assert list(result["pacing"]) == ["1", "all"]
    for count, pair in result["pacing"].items():
        assert pair["by_run"] == pytest.approx(np.subtract(paced[count], plain[count]).tolist())
        mean = 100 * pair["mean"]
        assert f"{mean:+.1f} (" in table.read_text().splitlines()[-1]
    assert rows["ours"]["paper"]["1"] == [79.8, 0.33]
    line = next(x for x in table.read_text().splitlines() if x.startswith("| Mean teacher |"))
    mean = 100 * np.mean(rows["teacher"]["dice"]["1"])
    assert f"| 62.9 (0.7) | {mean:.1f} (" in line
    assert (config.out / "report.html").exists()
    assert (config.out / "20-encoder-self_paced" / "encoder.safetensors").exists()

    (folder / "evaluation.json").unlink()  # as if it had been stopped before its end
    stamp = (config.out / "10-1-ours" / "evaluation.json").stat().st_mtime_ns
    leave_out_the_page()
    reproduce(config)
    assert (config.out / "10-1-ours" / "evaluation.json").stat().st_mtime_ns == stamp
    assert json.loads((folder / "evaluation.json").read_text())["dice"] == evaluation["dice"]


OTHER_STRUCTURES = {"promise12": ["prostate"], "mmwhs": ["AA", "LA", "LV", "MYO"]}


@pytest.mark.slow
# as many patients as there must be for the labelled cases and one test case of the protocol
@pytest.mark.parametrize(
    ("dataset", "num_patients", "count"), [("promise12", 46, "3"), ("mmwhs", 24, "1")]
)
def test_grid_of_another_data_set(
    dataset, num_patients, count, one_process, tmp_path, monkeypatch, capfd
):
    """Reader, protocol and preset of each, the preset's trainings cut short."""
    content = yaml.safe_load(preset_path(f"{dataset}-cpu").read_text())
    content["model"]["max_channels"] = 16
    content["data"]["grid"] = {"size": 32, "spacing_mm": 8.0}
    content["pretrain"] |= {"num_scans": 2, "epochs": 1, "steps_per_epoch": 1}
    content["finetune"] |= {"steps": 1, "batch_size": 2}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(module, "preset_path", lambda name: file)
    phantom = PhantomConfig(num_patients=num_patients, size=32, pixel_mm=8.0)
    root = write_phantom(phantom, tmp_path / "data", dataset)
    methods = ("scratch", "ours")
    config = ReproduceConfig(
        dataset, root, tmp_path / "out", seeds=1, labelled=(count,), methods=methods, jobs=2
    )
    reproduce(config)
    assert "failed" not in capfd.readouterr().err
    result = json.loads((config.out / "reproduction.json").read_text())
    paper = PAPER[dataset]["ours"][int(count)]
    for row in result["methods"]:
        assert list(row["dice_by_class"][count]) == OTHER_STRUCTURES[dataset]
        assert len(row["dice"][count]) == 1
    assert result["methods"][1]["paper"][count] == list(paper)


@pytest.mark.slow
def test_a_failed_run_leaves_a_gap(
    small_preset, labelled, leave_out_the_page, phantom, tmp_path, capfd
):
    leave_out_the_page()
    methods = ("scratch", "entropy")
    config = ReproduceConfig(
        "acdc", phantom, tmp_path / "out", seeds=1, methods=methods, labelled=("1",), jobs=1
    )
    bad = config.out / "10-1-entropy"
    bad.mkdir(parents=True)
    (bad / "something").write_text("else")
    reproduce(config)
    assert "10-1-entropy failed: out must be" in capfd.readouterr().err
    result = json.loads((config.out / "reproduction.json").read_text())
    dice = {row["key"]: row["dice"] for row in result["methods"]}
    assert len(dice["scratch"]["1"]) == 1
    assert dice["entropy"] == {}
    assert (
        markdown(Reproduction.from_json(result))[-1]
        == "| Entropy minimisation | 60.5 (1.0) | - |  |"
    )


def test_missing_labelled_scans_are_named(small_preset, labelled, phantom, tmp_path):
    config = ReproduceConfig("acdc", phantom, tmp_path / "out", labelled=("4",))
    with pytest.raises(ConfigError, match=r"among 1, 2, all \(4 lacks patient067 ES\), got '4'"):
        reproduce(config)
    assert not config.out.exists()


def test_a_protocol_without_test_cases_is_refused(data_config, tmp_path):
    protocol = replace(data_config, protocol="chaitanya")  # which tests on none of patients 1 to 6
    with pytest.raises(DataError, match="must hold labelled test cases of chaitanya, got none"):
        split_scans(protocol)
    spcl = split_scans(replace(data_config, protocol="spcl"))
    assert {scan.patient for scan in spcl.test} == {"patient001"}
    assert len(spcl.train) == 10


def test_every_method_has_a_configuration(tmp_path):
    for dataset in PAPER:
        assert set(PAPER[dataset]) <= set(METHODS)
        for scale in ("cpu", "paper"):
            file = preset_path(f"{dataset}-{scale}")
            stage1 = stage_config(PretrainConfig, "pretrain", file)
            stage2 = stage_config(FinetuneConfig, "finetune", file)
            for method in METHODS.values():
                assert method_config(stage2, method).semi.weights == method.semi
            for encoder in (*ENCODERS, "contrastive"):
                changed = encoder_config(stage1, encoder, tmp_path)
                assert changed.loss.labels
                assert (changed.dense_weight > 0) == (encoder == "contrastive")


@pytest.mark.slow
def test_audit_of_a_phantom(small_preset, one_process, phantom, tmp_path):
    config = AuditConfig(
        phantom, tmp_path / "audit", noise=(0.0, 0.4), paces=("none", "quantile", "oracle"), picks=1
    )
    result = json.loads(audit(replace(config, jobs=2)).read_text())
    rows = {(row["pace"], row["noise"]): row for row in result["rows"]}
    assert len(rows) == 5  # the oracle has nothing to know without noise
    assert rows["oracle", 0.4]["auc"] is None
    assert len(rows["oracle", 0.4]["dice"]) == 1
    assert list(result["paired"]["oracle"]) == ["0.4"]
    for pace in config.paces:
        trained = config.out / f"0-0.4-{pace}" / "config.yaml"
        assert stage_config(PretrainConfig, "pretrain", trained).noise_known == (pace == "oracle")
    assert rows["quantile", 0.0]["auc"] is None
    assert rows["none", 0.4]["auc"] is None
    assert 0 <= rows["none", 0.4]["auc_loss"] <= 1
    row = rows["quantile", 0.4]
    scores = np.load(config.out / "0-0.4-quantile" / "audit.npz")
    expected = auc(1 - scores["weight"].astype(float), scores["wrong"])
    assert row["auc"] == pytest.approx(expected, abs=1e-6)
    assert len(row["dice"]) == 1
    gain = result["paired"]["quantile"]["0.4"]
    assert gain["mean"] == pytest.approx(row["dice"][0] - rows["none", 0.4]["dice"][0])
    assert result["config"]["pretrain"]["loss"]["labels"] == ["position"]
    assert (config.out / "report.html").exists()


def test_gains_of_an_audit_that_is_not_complete(tmp_path):
    """Two seeds that disagree and a third without a partner; the second lacks a scan."""
    config = AuditConfig(out=tmp_path, noise=(0.4,), paces=("none", "linear"), seeds=3, picks=7)
    for name, dice in [
        *((f"0-0.4-none-{pick}", 0.5) for pick in range(7)),
        *((f"0-0.4-linear-{pick}", 0.5) for pick in range(7)),
        *((f"1-0.4-none-{pick}", 0.5) for pick in range(7)),
        *((f"1-0.4-linear-{pick}", 0.9) for pick in range(7) if pick != 1),
        ("2-0.4-none-0", 0.1),
    ]:
        (tmp_path / name).mkdir()
        content = {"classes": ["x"], "scans": {"a1": {"patient": "a", "dice": {"x": dice}}}}
        (tmp_path / name / "evaluation.json").write_text(json.dumps(content))
    gain = audit_module._paired(config, "linear")["0.4"]
    assert gain.by_run == pytest.approx([0] * 6 + [0.4] * 6)
    assert gain.interval_95 == pytest.approx([0, 0.4])  # of two seeds, whatever their scans
    assert audit_module._paired(config, "hard") == {}


def test_bad_grids(tmp_path):
    with pytest.raises(ValueError, match=r"methods must be among scratch, .*, got 'magic'"):
        ReproduceConfig("acdc", tmp_path, methods=("magic",))
    with pytest.raises(ValueError, match=r"paces must be among none, .*, got 'square'"):
        AuditConfig(paces=("square",))
    with pytest.raises(ValueError, match=r"noise must be shares in \[0, 1\], got 40"):
        AuditConfig(noise=(40.0,))
