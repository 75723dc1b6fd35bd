"""Segmenting volumes in batches of slices, and reading test scans before a training."""

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.grid import Grid, from_grid, image_to_grid
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.evaluate.scans import (
    BATCH_SLICES,
    check_scans,
    evaluate_scans,
    segment_volume,
    slice_dice,
)
from spcl_fast.segmentation.finetune.loop import finetune
from spcl_fast.segmentation.networks import UNet
from spcl_fast.segmentation.runs.dataset import split_scans

GRID, SPACING_MM = Grid(32, 3.0), (8.0, 2.0, 3.0)


# fewer than a batch, whole batches, one slice more
@pytest.mark.parametrize("count", [1, BATCH_SLICES, 2 * BATCH_SLICES, 2 * BATCH_SLICES + 1])
def test_batches_of_slices_give_the_labels_of_all_at_once(count):
    torch.manual_seed(0)
    net = UNet(1, 3, 64).eval()
    # slices of different brightness: the percentiles are those of the volume
    image = torch.rand(count, 40, 36) * torch.arange(1, count + 1)[:, None, None]
    sizes = []
    with net.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0]))):
        labels = segment_volume(net, image, SPACING_MM, GRID)
    with torch.no_grad():
        logits = net(image_to_grid(image, SPACING_MM, GRID)[:, None])
    assert torch.equal(labels, from_grid(logits, (40, 36), SPACING_MM, GRID).argmax(1).byte())
    assert labels.dtype == torch.uint8
    assert max(sizes) <= BATCH_SLICES
    assert sum(sizes) == count


def test_scans_are_checked_before_a_training(tmp_path, capsys):
    array = np.ones((4, 5, 3), np.uint8)
    for name in ("a", "b"):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    scan = Scan("a", "a", None, tmp_path / "a.nii.gz", tmp_path / "b.nii.gz")
    assert [geometry.notes for geometry in check_scans([scan])] == [()]
    check_scans([scan], grid=Grid(16, 1.0))
    assert not capsys.readouterr().err
    check_scans([scan], grid=Grid(4, 1.0))  # the scan has 5 rows
    assert "leaves out 20.0 % of the foreground of the test scans" in capsys.readouterr().err
    nibabel.save(nibabel.Nifti1Image(array, 2 * np.eye(4)), scan.mask)
    with pytest.raises(DataError, match=r"b.nii.gz must lie where its image"):
        check_scans([scan])


def test_a_bad_test_scan_ends_a_run_before_its_first_step(data_config, finetune_config, tmp_path):
    root = tmp_path / "acdc"
    shutil.copytree(data_config.root, root)
    data = replace(data_config, root=root, csv=None, num_val=1)
    scan = split_scans(data).test[-1]
    mask = nibabel.load(scan.mask)
    nibabel.save(nibabel.Nifti1Image(np.asarray(mask.dataobj), np.eye(4)), scan.mask)
    config = replace(finetune_config, data=data)
    with pytest.raises(DataError, match=f"{scan.mask} must lie where its image"):
        finetune(config)
    assert not config.out.exists()


def test_a_mask_of_background_only(tmp_path):
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((32, 32, 2), np.uint8), np.eye(4)), path)
    scan = Scan("a", "a", None, path, path, class_names=("background", "x"))
    net = UNet(1, 2, 16)
    with torch.no_grad():
        net.out.bias.copy_(torch.tensor([100.0, 0.0]))  # finds nothing
    with pytest.raises(
        DataError, match=r"a\.nii\.gz must hold labelled voxels, got background only"
    ):
        check_scans([scan])
    with pytest.raises(DataError, match="--absent-class score counts such masks"):
        evaluate_scans(net, [scan], GRID, None)
    assert [geometry.notes for geometry in check_scans([scan], "score")] == [()]
    assert evaluate_scans(net, [scan], GRID, None, "score").dice == {"x": 1.0}


def test_validation_leaves_out_what_no_mask_holds():
    slices = Slices(
        scans=tuple(Scan(n, n, None, Path(n), Path(n), class_names=("bg", "x", "y")) for n in "ab"),
        images=torch.zeros(2, 1, 32, 32),
        masks=torch.zeros(2, 32, 32, dtype=torch.uint8),
        scan=torch.tensor([0, 1]),
        slice_index=torch.zeros(2, dtype=torch.int64),
        num_slices=torch.ones(2, dtype=torch.int64),
        meta={},
        categories={},
    )
    slices.masks[0, :8] = 1
    net = UNet(1, 3, 16)
    with torch.no_grad():
        net.out.bias.copy_(torch.tensor([-100.0, 100.0, -100.0]))  # finds x everywhere
    assert slice_dice(net, slices) == {"x": pytest.approx(2 / 5)}
    assert slice_dice(net, slices, absent="score") == {"x": pytest.approx(1 / 5), "y": 1.0}
    assert [scan.name for scan in slices.scans_without_foreground()] == ["b"]
