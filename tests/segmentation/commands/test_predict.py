"""Prediction on folders: labels as the network gives them, and one bad image stops no other."""

import csv
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from spcl_fast.cli import main
from spcl_fast.segmentation.commands.predict import PredictConfig, predict
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.metaimage import write_metaimage
from spcl_fast.segmentation.data.volume import read_image
from spcl_fast.segmentation.evaluate import predict as module
from spcl_fast.segmentation.evaluate.ensemble import Ensemble, largest_components
from spcl_fast.segmentation.evaluate.scans import segment_volume
from spcl_fast.segmentation.finetune.config import FinetuneConfig
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.runs.config import dump_config
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.network import ModelConfig, load_segmenter, segmenter_metadata
from spcl_fast.segmentation.runs.run import save_weights

GRID = Grid(size=32, spacing_mm=4.0)
SPACING_MM = (8.0, 2.0, 3.0)  # (dz, dy, dx)
AFFINE = np.diag([3.0, 2.0, 8.0, 1.0])
SHAPE = (5, 40, 36)  # (S, H, W)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a segmenter of three classes that was not trained."""
    folder = tmp_path_factory.mktemp("run")
    model = ModelConfig(num_classes=3, max_channels=64)
    torch.manual_seed(0)
    net = UNet(1, 3, 64)
    with torch.no_grad():  # centre the logits, so that every class is found somewhere
        for norm in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = 1.0
        net.out.bias -= net.train()(torch.rand(8, 1, 32, 32)).mean((0, 2, 3))
    weights, metadata = net.state_dict(), segmenter_metadata(model)
    save_weights(folder / "segmenter.safetensors", weights, metadata)
    config = FinetuneConfig(data=DataConfig(grid=GRID), model=model)
    (folder / "config.yaml").write_text(dump_config(config, "finetune", "run"))
    return folder


def volume(seed):
    return np.random.default_rng(seed).random(SHAPE, dtype=np.float32) * 900


@pytest.fixture
def images(tmp_path):
    """Three good images of three kinds, and a file that is no image."""
    folder = tmp_path / "images"
    folder.mkdir()
    nibabel.save(nibabel.Nifti1Image(volume(0).T, AFFINE), folder / "a.nii")
    nibabel.save(nibabel.Nifti1Image(volume(1).T, AFFINE), folder / "b.nii.gz")
    write_metaimage(folder / "c.mhd", volume(2), SPACING_MM)
    (folder / "notes.txt").write_text("not an image")
    (folder / "._b.nii.gz").write_text("as some systems leave them")
    return folder


def expected(run, path):
    """Return the labels (x, y, z) of an image by hand."""
    net = load_segmenter(run, ModelConfig(num_classes=3, max_channels=64))
    image, spacing_mm, _ = read_image(path)
    return segment_volume(net, torch.from_numpy(image), spacing_mm, GRID).numpy().T


def test_folder_of_several_formats(run, images, tmp_path, capsys):
    out, table = tmp_path / "labels", tmp_path / "tables" / "summary.csv"
    written = predict(PredictConfig(run, images, out, summary=table))
    assert [p.name for p in written] == ["a_pred.nii.gz", "b_pred.nii.gz", "c_pred.nii.gz"]
    assert sorted(p.name for p in out.iterdir()) == [p.name for p in written]
    for path, source in zip(written, ("a.nii", "b.nii.gz", "c.mhd"), strict=True):
        labels = np.asarray(nibabel.load(path).dataobj)
        assert np.array_equal(labels, expected(run, images / source))
        assert np.array_equal(nibabel.load(path).affine, read_image(images / source)[2])
        assert len(np.unique(labels)) == 3
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    for row, path in zip(rows, written, strict=True):
        labels = np.asarray(nibabel.load(path).dataobj)
        for k in range(3):
            voxels = int((labels == k).sum())
            assert int(row[f"voxels_{k}"]) == voxels
            assert float(row[f"ml_{k}"]) == pytest.approx(voxels * 48 / 1000)  # 8 x 2 x 3 mm
        assert float(row["seconds"]) > 0
        assert row["error"] == ""
    said = capsys.readouterr().err
    assert "predict 3/3" in said
    assert "3 of 3 images segmented in " in said


def truncated(folder):
    path = folder / "bad.nii.gz"
    path.write_bytes((folder / "b.nii.gz").read_bytes()[:1000])


def four_dimensional(folder):
    array = np.zeros((4, 4, 3, 2), np.float32)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / "bad.nii.gz")


def flat(folder):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4), np.float32), AFFINE), folder / "bad.nii.gz")


def without_data(folder):
    (folder / "bad.mhd").write_text("ObjectType = Image\nNDims = 3\n")


def nan(folder):
    array = np.full((4, 4, 3), np.nan, np.float32)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / "bad.nii.gz")


def directory(folder):
    (folder / "bad.nii.gz").mkdir()


def link_to_nowhere(folder):
    (folder / "bad.nii.gz").symlink_to(folder / "gone.nii.gz")


@pytest.mark.parametrize(
    "spoil",  # what a folder of a clinic can hold beside good images
    [truncated, four_dimensional, flat, without_data, nan, directory, link_to_nowhere],
)
def test_bad_image_stops_no_other(run, images, tmp_path, capsys, spoil):
    spoil(images)
    out, table = tmp_path / "labels", tmp_path / "summary.csv"
    folders = ["--run", str(run), "--images", str(images), "--out", str(out)]
    assert main(["predict", *folders, "--device", "cpu", "--summary", str(table)]) == 2
    assert [p.name[0] for p in sorted(out.iterdir())] == ["a", "b", "c"]
    said = capsys.readouterr().err
    assert f"skipped: {images / 'bad'}" in said
    assert "3 of 4 images segmented" in said
    assert said.strip().endswith("1 of 4 images could not be read or segmented, see above")
    with open(table, newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    assert "bad" in rows["bad"]["error"]
    assert rows["bad"]["voxels_0"] == ""
    assert int(rows["c"]["voxels_0"]) > 0


def test_output_that_cannot_be_written_or_computed(run, images, tmp_path, monkeypatch, capsys):
    out = tmp_path / "labels"
    (out / "a_pred.nii.gz").mkdir(parents=True)  # in the way
    calls = 0

    def fail_the_second_time(*args):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory:\n tried to allocate 1 GiB")
        return segment_volume(*args)

    monkeypatch.setattr(module, "segment_volume", fail_the_second_time)
    with pytest.raises(DataError, match="2 of 3 images could not be read or segmented"):
        predict(PredictConfig(run, images, out))
    said = capsys.readouterr().err
    assert f"skipped: {images / 'a.nii'} could not be segmented: " in said
    assert "b.nii.gz could not be segmented: out of memory: tried to allocate 1 GiB" in said
    assert sorted(os.listdir(out)) == ["a_pred.nii.gz", "c_pred.nii.gz"]  # and nothing partial


def test_folders_that_cannot_be_made_are_named(run, images, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    start = ["predict", "--run", str(run), "--images", str(images), "--device", "cpu", "--out"]
    for words in ([taken], [taken / "x"], [tmp_path / "out", "--summary", taken / "s.csv"]):
        assert main([*start, *map(str, words)]) == 1
        assert f"spcl-fast predict: {taken}" in capsys.readouterr().err


def test_several_runs_with_flips_and_the_largest_component(run, images, tmp_path, capsys):
    out = tmp_path / "labels"
    words = ["--images", str(images / "b.nii.gz"), "--out", str(out), "--device", "cpu"]
    options = ["--flips", "--largest-component"]
    assert main(["predict", "--run", str(run), str(run), *words, *options]) == 0
    found = np.asarray(nibabel.load(out / "b_pred.nii.gz").dataobj)
    net = load_segmenter(run, ModelConfig(num_classes=3, max_channels=64))
    image, spacing_mm, _ = read_image(images / "b.nii.gz")
    labels = segment_volume(Ensemble([net], flips=True), torch.from_numpy(image), spacing_mm, GRID)
    assert np.array_equal(found, largest_components(labels).numpy().T)
    assert not np.array_equal(found, labels.numpy().T)
    other = Path(shutil.copytree(run, tmp_path / "other"))
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("spacing_mm: 4.0", "spacing_mm: 3.0"))
    assert main(["predict", "--run", str(run), str(other), *words]) == 2
    assert "run must name runs of one model, grid and way to read" in capsys.readouterr().err


def test_one_file_and_again(run, images, tmp_path):
    config = PredictConfig(run, images / "b.nii.gz", tmp_path / "labels")
    (path,) = predict(config)
    first = np.asarray(nibabel.load(path).dataobj)
    path.write_bytes(b"older")
    assert predict(config) == [path]
    assert np.array_equal(np.asarray(nibabel.load(path).dataobj), first)


def test_what_cannot_work_is_said_before_anything_is_done(run, images, tmp_path):
    out = tmp_path / "labels"
    with pytest.raises(DataError, match="out must be another folder than images"):
        predict(PredictConfig(run, images, images / ".." / "images"))
    with pytest.raises(DataError, match="images must be a NIfTI file, another of"):
        predict(PredictConfig(run, tmp_path / "nowhere", out))
    with pytest.raises(DataError, match=f"files, got only other files and folders: {tmp_path}"):
        predict(PredictConfig(run, tmp_path, out))
    (images / "a.nii.gz").write_bytes((images / "b.nii.gz").read_bytes())
    with pytest.raises(DataError, match=r"got a\.nii and a\.nii\.gz for a_pred\.nii\.gz"):
        predict(PredictConfig(run, images, out))
    assert not out.exists()
