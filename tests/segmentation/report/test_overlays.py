"""Overlays: which scans are drawn, what is cropped, and that contours land where the masks are."""

import io
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from spcl_fast.segmentation.evaluate.record import Evaluation, ScanScores
from spcl_fast.segmentation.report import figures, overlays
from spcl_fast.segmentation.report.runs import RunRecord, find_runs


def evaluated(root):
    return [run for run in find_runs(root)[0] if run.evaluation is not None]


def test_best_median_and_worst_scan(full_runs):
    # the fixture's Dice falls by .05 a scan
    scans = ["patient001_frame01", "patient001_frame12", "patient002_frame01", "patient002_frame12"]
    chosen = overlays._best_median_worst(evaluated(full_runs)[:2])
    assert chosen == [("best", scans[0]), ("median", scans[2]), ("worst", scans[3])]


# no, one and two scans in common
@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, []), (1, [("only", "a")]), (2, [("best", "b"), ("worst", "a")])],
)
def test_few_scans(full_runs, count, expected):
    run = evaluated(full_runs)[0]
    dice = {"a": 0.1, "b": 0.9}
    scans = {name: ScanScores(name, {"LV": value}) for name, value in list(dice.items())[:count]}
    run.evaluation = replace(run.evaluation, scans=scans)
    assert overlays._best_median_worst([run]) == expected


def test_the_worst_scans_are_drawn_where_there_are_many(full_runs, monkeypatch):
    runs = evaluated(full_runs)[:2]
    assert overlays.worst_picture(runs, "all") is None  # four scans, which the other picture has
    monkeypatch.setattr(overlays, "WORST", 1)
    drawn, label = [], overlays._row_label

    def noted(ax, text, name, run):
        drawn.append((text, name, run.name))
        label(ax, text, name, run)

    monkeypatch.setattr(overlays, "_row_label", noted)
    picture = overlays.worst_picture(runs, "all")
    worst = "1 of the worst", "patient002_frame12"  # the lowest Dice
    assert drawn == [(*worst, run.name) for run in runs]
    assert imread(io.BytesIO(picture.png)).std() > 0
    assert runs[-1].name in picture.caption


def test_surroundings_are_square_in_mm():
    mask = np.zeros((2, 100, 80), dtype=np.uint8)
    mask[1, 40:60, 30:40] = 3  # 20 rows of 1 mm, 10 columns of 2 mm: 20 mm either way
    rows, columns = overlays._surroundings(mask, (10.0, 1.0, 2.0))
    assert rows.start <= 40 - 5
    assert rows.stop >= 60 + 5
    assert (rows.stop - rows.start) * 1.0 == pytest.approx(
        (columns.stop - columns.start) * 2.0, abs=4.0
    )
    empty = np.zeros((2, 100, 80), dtype=np.uint8)
    assert overlays._surroundings(empty, (1.0, 1.0, 1.0)) == (slice(0, 100), slice(0, 80))


def test_contour_runs_around_the_mask():
    figure = Figure(figsize=(1, 1), facecolor="black")
    ax = figure.add_axes((0, 0, 1, 1))
    figures.style_image(ax)
    ax.set_facecolor("black")
    region = np.zeros((10, 10), dtype=bool)
    region[2:5, 6:9] = True  # rows 2 to 4, columns 6 to 8
    overlays._contour(ax, region, "#ffffff", "solid", 1.0)
    pixels = imread(io.BytesIO(figures.to_png(figure)))[..., 0] > 0.5
    y, x = (axis / figures.DOTS_PER_INCH * 10 for axis in np.nonzero(pixels))
    # in units of voxels from the corner of the image: the region is [2, 5] x [6, 9]
    assert y.min() == pytest.approx(2, abs=0.2)
    assert y.max() == pytest.approx(5, abs=0.2)
    assert x.min() == pytest.approx(6, abs=0.2)
    assert x.max() == pytest.approx(9, abs=0.2)


def test_relative_and_absolute_paths(full_runs):
    run = evaluated(full_runs)[0]
    scan, scores = next(iter(run.evaluation.scans.items()))
    relative = overlays._path(run, scan, "image")
    assert relative.is_file()
    changed = replace(scores, image=str(relative.resolve()), prediction=None)
    run.evaluation = replace(run.evaluation, scans={scan: changed})
    assert overlays._path(run, scan, "image") == relative.resolve()
    with pytest.raises(ValueError, match="names no prediction of patient001_frame01"):
        overlays._path(run, scan, "prediction")


def test_smooth():
    assert figures.smooth([1.0, 2.0, 6.0, 2.0], 3).tolist() == [1.5, 3.0, 10 / 3, 4.0]
    assert figures.smooth([1.0, 5.0], 1).tolist() == [1.0, 5.0]


def test_a_frame_of_a_file_with_other_label_values(tmp_path):
    """The evaluation says which frame and stack axis a file has, and which value is which class."""
    rng = np.random.default_rng(0)
    image = rng.random((5, 6, 4, 2)).astype(np.float32)  # x, y, stack, frame
    values = np.zeros((5, 6, 4, 2), dtype=np.uint16)
    values[1:3, 2:4, :, 1] = 420
    prediction = np.where(values[..., 1] == 420, 1, 0).astype(np.uint8)
    for name, array in (("image", image), ("mask", values), ("prediction", prediction)):
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    row = {name: f"{name}.nii.gz" for name in ("image", "mask", "prediction")}
    row |= {"dice": {"LA": 1.0}, "frame": 1, "stack_axis": 2, "classes": [[0, 0], [420, 1]]}
    run = RunRecord(tmp_path, "run", "finetune", {}, "")
    run.evaluation = Evaluation.from_json({"classes": ["LA"], "scans": {"scan": row}})
    arrays, _ = overlays._read([run], "scan")
    np.testing.assert_array_equal(arrays["image"], image[..., 1].T)
    np.testing.assert_array_equal(arrays["mask"], prediction.T)
    np.testing.assert_array_equal(arrays["mask"], arrays["prediction run"])


def test_the_classes_of_a_whole_heart_have_colours_of_their_own():
    names = ["MYO", "LA", "LV", "RA", "RV", "AA", "PA"]
    assert len({figures.class_colour(name, index) for index, name in enumerate(names)}) == 7
    assert figures.class_colour("MYO", 0) == figures.CLASS_COLOURS["MYO"]
