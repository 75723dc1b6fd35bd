"""Reading run folders: torn and damaged files, names, paces that are no number."""

import json
import math
import sys
import types

import numpy as np
import pytest

from spcl_fast.segmentation.report.curves import pretraining_curves
from spcl_fast.segmentation.report.embedding import embedding_picture, principal_plane
from spcl_fast.segmentation.report.pairs import weight_picture
from spcl_fast.segmentation.report.runs import find_runs


def only(folder):
    (run,), problems = find_runs(folder)
    assert problems == []
    return run


def test_series(pretrain_folder):
    run = only(pretrain_folder)
    steps, values = run.series("epoch", "knn_position_accuracy")
    assert steps == [50, 100, 150, 200]
    assert values == pytest.approx([0.25, 0.3, 0.35, 0.4])
    assert run.problems == []


def test_torn_last_line_is_silent_and_a_damaged_one_is_not(pretrain_folder):
    log = pretrain_folder / "metrics.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines) + '\n{"kind": "step", "st')
    run = only(pretrain_folder)
    assert len(run.rows) == len(lines)
    assert run.problems == []
    log.write_text("\n".join(["\x00\x00", *lines]) + "\n")
    run = only(pretrain_folder)
    assert len(run.rows) == len(lines)
    assert run.problems == ["1 lines of its metrics.jsonl cannot be read."]


# plain SupCon (None or infinity in the log), one pace a label, and one of them without pace
@pytest.mark.parametrize(
    "gamma",
    [
        *(pytest.param(x, marks=pytest.mark.slow) for x in (None, math.inf)),
        {"position": 3.0, "patient": None},
    ],
)
def test_paces_that_are_no_number(pretrain_folder, gamma):
    log = pretrain_folder / "metrics.jsonl"
    rows = [json.loads(line) | {"gamma": gamma} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert pretraining_curves([only(pretrain_folder)]).png.startswith(b"\x89PNG")


def test_equal_names_become_paths(pretrain_folder, finetune_folder):
    root = pretrain_folder.parent
    for path in (pretrain_folder, finetune_folder):
        text = (path / "config.yaml").read_text().replace(path.name, "same", 1)
        (path / "config.yaml").write_text(text)
    assert [run.name for run in find_runs(root)[0]] == ["position", "scratch"]


def test_unreadable_config_is_named(pretrain_folder):
    broken = pretrain_folder.parent / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("stage: [")
    runs, problems = find_runs(pretrain_folder.parent)
    assert len(runs) == 1
    assert problems[0].startswith("broken/config.yaml cannot be read:")


# torn JSON, another structure, an evaluation without its means
@pytest.mark.parametrize("text", ['{"classes": [', "[1, 2]", '{"classes": [], "scans": {}}'])
def test_damaged_evaluation_is_named(finetune_folder, text):
    (finetune_folder / "evaluation.json").write_text(text)
    run = only(finetune_folder)
    assert run.evaluation is None
    assert "evaluation.json" in run.problems[0]


def test_label_without_positive_pairs(pretrain_folder):
    """With every slice its own label there are no weights: the similarity alone is drawn."""
    both = weight_picture(only(pretrain_folder))
    for path in (pretrain_folder / "weights").iterdir():
        arrays = dict(np.load(path))
        np.savez(path, **arrays | {"positive": np.zeros_like(arrays["positive"])})
    alone = weight_picture(only(pretrain_folder))
    assert "no positive pairs to weight" in alone.caption
    height = [int.from_bytes(picture.png[20:24], "big") for picture in (alone, both)]
    assert height[0] < 0.6 * height[1]


def test_torn_arrays_are_named(pretrain_folder):
    for path in (pretrain_folder / "embedding.npz", *(pretrain_folder / "weights").iterdir()):
        path.write_bytes(path.read_bytes()[:200])
    run = only(pretrain_folder)
    assert embedding_picture(run) is None
    assert weight_picture(run) is None
    assert len(run.problems) == 5
    assert all("cannot be read" in text for text in run.problems)


def test_principal_plane():
    """Points on a line along (3, 4): one component, coordinates are distances from the mean."""
    t = np.array([-2.0, -1.0, 0.0, 3.0])
    plane, share = principal_plane(np.stack([3 * t, 4 * t], axis=1) + 7)
    np.testing.assert_allclose(np.abs(plane[:, 0]), 5 * np.abs(t), atol=1e-12)
    np.testing.assert_allclose(share, [1, 0], atol=1e-12)
    with pytest.raises(ValueError, match="z must be finite"):
        principal_plane(np.full((4, 2), np.nan))


def test_tsne_is_drawn_where_scikit_learn_is(pretrain_folder, monkeypatch):
    """A stand-in for the package: the second row of panels appears only with it."""

    class Tsne:
        def __init__(self, **settings):
            assert settings["perplexity"] < 80

        def fit_transform(self, z):
            return z[:, :2]

    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", types.SimpleNamespace(TSNE=Tsne))
    both = embedding_picture(only(pretrain_folder))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    alone = embedding_picture(only(pretrain_folder))
    height = [int.from_bytes(picture.png[20:24], "big") for picture in (alone, both)]
    assert height[1] == 2 * height[0]
