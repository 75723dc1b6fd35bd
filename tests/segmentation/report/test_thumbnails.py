"""The picture of a data set: which scans and slices are drawn, and contours around the labels."""

import matplotlib.image
import numpy as np
import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.metaimage import write_metaimage
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.report import figures
from spcl_fast.segmentation.report.thumbnails import write_thumbnails


def make_scan(folder, name, num_slices=5, labelled=True, columns=24):
    image = np.zeros((num_slices, 20, columns), np.int16)
    mask = np.zeros_like(image)
    if labelled:
        mask[:, 6:14, 6:14] = 1
        mask[:, 8:12, 8:12] = 2
    write_metaimage(folder / f"{name}.mhd", image, (8.0, 1.5, 1.5))
    write_metaimage(folder / f"{name}_gt.mhd", mask, (8.0, 1.5, 1.5))
    files = folder / f"{name}.mhd", folder / f"{name}_gt.mhd"
    return Scan(name, name, "ED", *files, {"vendor": "A"}, class_names=("background", "a", "b"))


def num_pixels(path, colour):
    """Pixels near a colour, in the part of the picture where slices are."""
    picture = matplotlib.image.imread(path)[..., :3]
    wanted = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    near = np.abs(picture - wanted).max(axis=2) < 0.15
    return int(near[:, near.shape[1] // 4 :].sum())


def test_labels_are_outlined_in_the_colour_of_their_class(tmp_path):
    write_thumbnails(tmp_path / "sub" / "a.png", [make_scan(tmp_path, "a")])
    plain = [make_scan(tmp_path, "b", labelled=False)]
    write_thumbnails(tmp_path / "b.png", plain)
    for colour in figures.OTHER_CLASS_COLOURS[:2]:
        assert num_pixels(tmp_path / "sub" / "a.png", colour) > 100
        assert num_pixels(tmp_path / "b.png", colour) == 0


@pytest.mark.slow
def test_few_scans_and_slices_are_drawn_of_many(tmp_path):
    scans = [make_scan(tmp_path, f"s{k}", num_slices=2 + 3 * k) for k in range(9)]
    write_thumbnails(tmp_path / "few.png", scans[:6])
    write_thumbnails(tmp_path / "many.png", scans)
    few, many = (matplotlib.image.imread(tmp_path / f"{n}.png") for n in ("few", "many"))
    assert few.shape == many.shape


def test_a_slice_of_one_column_is_drawn(tmp_path):
    write_thumbnails(tmp_path / "a.png", [make_scan(tmp_path, "a", num_slices=1, columns=1)])
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="must be a writable PNG file"):
        write_thumbnails(tmp_path / "file" / "a.png", [make_scan(tmp_path, "a")])
