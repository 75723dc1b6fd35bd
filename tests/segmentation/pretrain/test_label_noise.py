"""The noise audit of one pre-training: which labels are wrong, AUC and ROC, and what is logged."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.label_noise import auc, flip_labels, known_labels, roc
from spcl_fast.segmentation.pretrain.loop import pretrain
from spcl_fast.segmentation.runs.run import read_log


def test_flipped_share_and_nothing_else():
    labels = torch.arange(200) % 5 * 3  # categories that are not 0, 1, 2, ...
    labels[:20] = -1
    flipped = flip_labels({"position": labels}, 0.1, seed=4)["position"]
    wrong = flipped != labels
    assert int(wrong.sum()) == 18
    assert not wrong[:20].any()
    assert set(flipped.unique().tolist()) == set(labels.unique().tolist())
    more = flip_labels({"position": labels}, 0.3, seed=4)["position"] != labels
    assert int(more.sum()) == 54
    assert bool(more[wrong].all())
    same = flip_labels({"position": labels}, 0.0, seed=4)["position"]
    assert torch.equal(same, labels)
    everything = flip_labels({"position": labels}, 1.0, seed=4)["position"]
    assert int((everything != labels).sum()) == 180
    with pytest.raises(ValueError, match="label_noise needs labels of two categories or more"):
        flip_labels({"phase": torch.zeros(4, dtype=torch.int64)}, 0.5, seed=0)


def test_who_knows_the_wrong_labels_leaves_them_alone():
    clean = torch.arange(60) % 4
    clean[:5] = -1
    noisy = flip_labels({"position": clean}, 0.4, seed=1)["position"]
    known = known_labels({"position": clean}, {"position": noisy})["position"]
    wrong = noisy != clean
    assert torch.equal(known[~wrong], clean[~wrong])
    assert wrong.any()
    for i in wrong.nonzero().flatten().tolist():
        assert int((known == known[i]).sum()) == 1


def test_auc_by_counting_pairs():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 6, 60).astype(float)  # with many ties
    positive = rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    assert auc(score, positive) == pytest.approx(np.mean(pairs))
    assert auc(-score, positive) == pytest.approx(1 - np.mean(pairs))
    assert np.isnan(auc(score, np.ones(60, dtype=bool)))


@pytest.mark.parametrize("points", [101, 5000])  # thinned, and every threshold
def test_area_under_the_roc_is_the_auc(points):
    rng = np.random.default_rng(1)
    positive = rng.random(1000) < 0.2
    score = rng.normal(size=1000) + positive
    curve = roc(score, positive, points)
    assert (curve["fpr"][0], curve["tpr"][0]) == (0, 0)
    assert (curve["fpr"][-1], curve["tpr"][-1]) == (1, 1)
    tpr, fpr = np.array(curve["tpr"]), np.array(curve["fpr"])
    area = np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2)
    assert area == pytest.approx(auc(score, positive), abs=1e-9 if points > 1000 else 0.02)
    hard = roc((score > 1).astype(float), positive)
    assert len(hard["tpr"]) == 3


def test_a_pre_training_with_wrong_labels_logs_its_audit(pretrain_config):
    path = pretrain(replace(pretrain_config, label_noise=0.3, epochs=2))
    rows = [r for r in read_log(path.parent / "metrics.jsonl") if r["kind"] == "epoch"]
    scores = np.load(path.with_name("audit.npz"))
    weight, wrong = scores["weight"].astype(float), scores["wrong"]
    assert rows[-1]["audit_auc"] == pytest.approx(auc(1 - weight, wrong), abs=1e-6)
    assert rows[-1]["audit_wrong"] == pytest.approx(wrong.mean())
    # a share f of wrong labels: 1 - (1 - f)^2 of the pairs have one, a few of these are right
    assert 0.3 < wrong.mean() < 0.65
    assert rows[-1]["audit_weight_right"] == pytest.approx(weight[~wrong].mean(), abs=1e-6)
    out = path.parent.with_name("known")
    known = pretrain(replace(pretrain_config, label_noise=0.3, noise_known=True, epochs=2, out=out))
    row = [r for r in read_log(known.parent / "metrics.jsonl") if r["kind"] == "epoch"][-1]
    assert row["audit_wrong"] == pytest.approx(wrong.mean())  # of the labels, known or not
    assert row["loss"] != pytest.approx(rows[-1]["loss"], abs=1e-3)
    clean = pretrain(replace(pretrain_config, out=path.parent.with_name("clean"), epochs=1))
    assert not clean.with_name("audit.npz").exists()


def test_noise_needs_categories():
    loss = replace(PretrainConfig().loss, position_window=0.1)
    with pytest.raises(ValueError, match="label_noise must be 0 with position_window"):
        PretrainConfig(loss=loss, label_noise=0.1)
    with pytest.raises(ValueError, match=r"label_noise must be in \[0, 1\], got 2"):
        PretrainConfig(label_noise=2)
    with pytest.raises(ValueError, match="noise_known needs label_noise above 0, got 0"):
        PretrainConfig(noise_known=True)
