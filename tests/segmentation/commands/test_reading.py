"""Prediction and evaluation read what training read: channels, frames, classes by name."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from spcl_fast.segmentation.commands.evaluate import EvaluateConfig, evaluate
from spcl_fast.segmentation.commands.predict import PredictConfig, predict
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.volume import read_scan
from spcl_fast.segmentation.evaluate.metrics import dice_per_class
from spcl_fast.segmentation.evaluate.scans import segment_volume
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.phantom import PhantomConfig, write_phantom
from spcl_fast.segmentation.runs.dataset import split_scans
from spcl_fast.segmentation.runs.network import load_segmenter
from spcl_fast.segmentation.runs.run import read_weights, save_weights


@pytest.fixture
def train(finetune_config, tmp_path):
    """Train for a step in a layout; return the configuration and a network that finds classes."""

    def run(root, **data):
        data = replace(
            finetune_config.data, root=root, csv=None, cache=tmp_path / "c", num_test=1, **data
        )
        model = replace(finetune_config.model, num_classes=4, max_channels=32)
        config = replace(finetune_config, data=data, model=model, out=tmp_path / "run", steps=1)
        config = replace(config, val_every=9)
        finetune(config)
        return config, tell_apart(config)

    return run


def tell_apart(config):
    """Centre the logits of the network of a run, so that every class is found somewhere."""
    path = config.out / "segmenter.safetensors"
    net = load_segmenter(config.out, config.model)
    with torch.no_grad():
        for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = 1.0
        net.out.bias -= net.train()(torch.rand(8, 1, 32, 32)).mean((0, 2, 3))
    save_weights(path, net.state_dict(), read_weights(path)[1])
    return net.eval()


def by_hand(net, config, scan):
    """Return the labels (x, y, z) of a scan as evaluation reads it."""
    volume = read_scan(scan)
    image = torch.from_numpy(volume.image)
    labels = segment_volume(net, image, volume.spacing_mm, config.data.grid).numpy().T
    assert len(np.unique(labels)) > 1
    return labels


def labels_of(path):
    return np.asarray(nibabel.load(path).dataobj)


def phantom(tmp_path, layout, num_patients=4):
    config = PhantomConfig(num_patients=num_patients, size=48)
    return write_phantom(config, tmp_path / layout, layout)


def rewrite_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_predict_reads_the_channel_of_training(train, tmp_path):
    root = phantom(tmp_path, "msd")
    rewrite_json(root / "dataset.json", modality={"0": "T2", "1": "ADC"})
    for path in (root / "imagesTr").glob("*.nii.gz"):
        image = nibabel.load(path)
        one = labels_of(path).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(np.stack([one % 7, one], -1), image.affine), path)
    config, net = train(root, channel=1)
    (scan,) = split_scans(config.data).test
    expected = by_hand(net, config, scan)
    (path,) = predict(PredictConfig(config.out, scan.image, tmp_path / "labels"))
    assert np.array_equal(labels_of(path), expected)
    (path,) = predict(PredictConfig(config.out, scan.image, tmp_path / "labels", channel=0))
    assert not np.array_equal(labels_of(path), expected)


def test_predict_takes_files_of_channels_as_one_case(train, tmp_path):
    config, net = train(phantom(tmp_path, "nnunet"))
    scan = split_scans(config.data).test[0]
    folder = tmp_path / "images"
    folder.mkdir()
    image = nibabel.load(scan.image)
    nibabel.save(image, folder / scan.image.name)
    other = nibabel.Nifti1Image(-labels_of(scan.image).astype(np.float32), image.affine)
    nibabel.save(other, folder / scan.image.name.replace("_0000", "_0001"))
    (path,) = predict(PredictConfig(config.out, folder, tmp_path / "labels"))
    assert path.name == f"{scan.name}_pred.nii.gz"
    assert np.array_equal(labels_of(path), by_hand(net, config, scan))


def test_predict_segments_every_frame_after_training_on_frames(train, tmp_path):
    config, net = train(phantom(tmp_path, "mnms"))
    scans = split_scans(config.data).test
    written = predict(PredictConfig(config.out, scans[0].image, tmp_path / "labels"))
    assert len(written) == nibabel.load(scans[0].image).shape[3] > 1
    for scan in scans:
        assert f"_frame{scan.frame:02d}_pred" in written[scan.frame].name
        assert np.array_equal(labels_of(written[scan.frame]), by_hand(net, config, scan))
    frame = scans[1].frame
    (one,) = predict(PredictConfig(config.out, Path(scans[0].image), tmp_path / "one", frame=frame))
    assert np.array_equal(labels_of(one), by_hand(net, config, scans[1]))
    assert not np.array_equal(labels_of(one), labels_of(written[scans[0].frame]))


def test_a_scan_with_other_axes_gets_the_same_labels(train, tmp_path, capsys):
    config, net = train(phantom(tmp_path, "nnunet"))
    scan = split_scans(config.data).test[0]
    expected = by_hand(net, config, scan)
    image = nibabel.load(scan.image)
    folder = tmp_path / "images"
    folder.mkdir()
    turns = {"a": [[2, 1], [0, -1], [1, 1]], "b": [[1, -1], [2, -1], [0, 1]]}
    for name, turn in turns.items():
        nibabel.save(image.as_reoriented(np.array(turn, float)), folder / f"{name}.nii.gz")
    for path in predict(PredictConfig(config.out, folder, tmp_path / "labels")):
        turn = np.array(turns[path.name[0]], float)
        labels = nibabel.Nifti1Image(expected, image.affine).as_reoriented(turn)
        assert np.array_equal(labels_of(path), np.asarray(labels.dataobj))
        assert np.allclose(nibabel.load(path).affine, labels.affine, atol=1e-4)
    assert "a.nii.gz: axes " in capsys.readouterr().err
    (path,) = predict(
        PredictConfig(config.out, folder / "a.nii.gz", tmp_path / "as_stored", stack_axis=2)
    )
    assert not np.array_equal(labels_of(path), labels_of(tmp_path / "labels" / path.name))


def test_evaluate_scores_a_scan_with_other_axes_alike(train, tmp_path, capsys):
    root = phantom(tmp_path, "nnunet", 3)
    config, _ = train(root, num_val=0)
    before = evaluate(EvaluateConfig(config.out, root=root))
    assert before.dice_mean > 0
    for k, path in enumerate(sorted(root.glob("*Tr/*.nii.gz"))):
        turn = [[[2, 1], [0, -1], [1, 1]], [[1, -1], [2, -1], [0, 1]]][k % 2]
        nibabel.save(nibabel.load(path).as_reoriented(np.array(turn, float)), path)
    after = evaluate(EvaluateConfig(config.out, root=root, out=tmp_path / "scores"))
    assert after.dice == before.dice
    assert after.hd95_mm == pytest.approx(before.hd95_mm)
    assert "turned to" in capsys.readouterr().err
    (name, row), *_ = after.scans.items()
    labels, mask = nibabel.load(tmp_path / "scores" / row.prediction), nibabel.load(row.mask)
    assert labels.shape == nibabel.load(row.image).shape
    assert dice_per_class(as_axes_of(mask, labels), np.asarray(mask.dataobj), 4) == pytest.approx(
        list(row.dice.values())
    )
    header, first, *_ = csv.reader((tmp_path / "scores" / "evaluation.csv").open())
    cells = dict(zip(header, first, strict=True))
    assert cells["scan"] == name
    assert float(cells["dice_LV"]) == pytest.approx(row.dice["LV"], abs=1e-5)


def as_axes_of(image, other):
    """Return the voxels of another image in the axes of one."""
    ornt = nibabel.orientations
    to = ornt.ornt_transform(*(ornt.io_orientation(x.affine) for x in (other, image)))
    return np.asarray(other.as_reoriented(to).dataobj)


def test_slices_are_stacked_along_the_third_axis_where_training_did(train, tmp_path):
    root = phantom(tmp_path, "nnunet")
    for path in root.glob("*Tr/*.nii.gz"):  # the largest voxels lie along the first axis
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(image.dataobj, np.diag([9.0, 2, 3, 1])), path)
    config, net = train(root)
    scan = split_scans(config.data).test[0]
    (path,) = predict(PredictConfig(config.out, scan.image, tmp_path / "labels"))
    assert np.array_equal(labels_of(path), by_hand(net, config, scan))


def test_evaluate_matches_classes_by_name(train, tmp_path):
    root = phantom(tmp_path, "nnunet", 3)
    config, _ = train(root, num_val=0)
    before = evaluate(EvaluateConfig(config.out, root=root))
    labels = {"background": 0, "LV": 1, "myo": 2, "RV": 3}
    rewrite_json(root / "dataset.json", labels=labels)
    for path in (root / "labelsTr").glob("*.nii.gz"):
        other = np.array([0, 3, 2, 1], np.uint8)[labels_of(path)]
        nibabel.save(nibabel.Nifti1Image(other, nibabel.load(path).affine), path)
    after = evaluate(EvaluateConfig(config.out, root=root))
    assert after.classes == before.classes == ("RV", "MYO", "LV")
    assert after.dice == before.dice
    by_number = evaluate(EvaluateConfig(config.out, root=root, match="number"))
    assert by_number.dice["LV"] != before.dice["LV"] > 0
    rewrite_json(root / "dataset.json", labels=labels | {"atrium": 4})
    with pytest.raises(DataError, match="must have the classes that the run was trained on"):
        evaluate(EvaluateConfig(config.out, root=root))


def test_what_is_not_annotated_is_no_class(finetune_config, tmp_path):
    root = phantom(tmp_path, "nnunet", 3)
    labels = json.loads((root / "dataset.json").read_text())["labels"]
    rewrite_json(root / "dataset.json", labels=labels | {"ignore": 4})
    for path in (root / "labelsTr").glob("*.nii.gz"):
        values = labels_of(path).copy()
        values[:20] = 4
        nibabel.save(nibabel.Nifti1Image(values, nibabel.load(path).affine), path)
    data = replace(finetune_config.data, root=root, csv=None, cache=tmp_path / "c", num_test=1)
    semi = replace(finetune_config.semi, teacher=1.0, copy_paste=1.0, mixup=1.0, num_scans=2)
    config = replace(finetune_config, data=data, semi=semi, steps=2)
    result = finetune(config)
    assert result.classes == ("RV", "MYO", "LV")
    scores = [value for value in result.dice.values() if not np.isnan(value)]
    assert scores  # of the classes that the test scan's mask still holds
    assert all(0 <= value <= 1 for value in scores)
    rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in rows if row["kind"] == "step")
