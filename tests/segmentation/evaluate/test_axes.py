"""Images in other axes than the training images: the same slices, labels back where they were."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest

from spcl_fast.segmentation.data.geometry import Geometry
from spcl_fast.segmentation.evaluate.axes import axes_of, common_codes

AFFINE = np.array([[-1.5, 0, 0, 9], [0, 1.25, 0, 4], [0, 0, 8.0, 100], [0, 0, 0, 1]])  # LAS
OBLIQUE = np.array([[-0.6, 0.8, 0, 5], [0.8, 0.6, 0, -3], [0, 0, 3.0, 2], [0, 0, 0, 1]])
IMAGE = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
ORNTS = [
    np.array(list(zip(order, signs, strict=True)), dtype=float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


def stored(ornt, affine=AFFINE):
    """Return the array and the geometry of the image, stored with other axes."""
    image = nibabel.Nifti1Image(IMAGE, affine).as_reoriented(ornt)
    sizes = tuple(np.linalg.norm(image.affine[:3, :3], axis=0).tolist())
    return np.asarray(image.dataobj), Geometry(Path("a"), image.shape, sizes, image.affine)


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE])
@pytest.mark.parametrize("ornt", ORNTS)
def test_every_order_and_direction_of_axes(ornt, affine):
    array, geometry = stored(ornt, affine)
    _, original = stored(ORNTS[0], affine)
    axes = axes_of(geometry, common_codes([original]))
    np.testing.assert_array_equal(axes.turned(array), IMAGE)
    assert axes.spacing_mm(geometry) == pytest.approx(original.spacing_mm)
    assert axes.stack_axis == 2
    assert (axes.remark is None) == np.array_equal(array, IMAGE)
    np.testing.assert_array_equal(axes.labels_back(IMAGE.T), array.T)


def test_the_largest_voxels_are_the_stack_where_codes_are_not_known():
    array, geometry = stored(np.array([[2.0, 1], [1, 1], [0, 1]]))  # slices along x
    axes = axes_of(geometry, None)
    assert axes.stack_axis == 0
    assert axes.remark == "slices along axis 0, where voxels are largest"
    np.testing.assert_array_equal(axes.turned(array), array)
    labels = np.moveaxis(array, 0, -1).T  # (S, H, W)
    np.testing.assert_array_equal(axes.labels_back(labels), array.T)
    cube = Geometry(Path("a"), (4, 4, 4), (1.4, 1.0, 1.0), np.diag([1.4, 1, 1, 1]))
    assert axes_of(cube, None).stack_axis == 2


def test_an_axis_that_is_named_is_taken_as_stored():
    array, geometry = stored(np.array([[2.0, 1], [1, -1], [0, 1]]))
    axes = axes_of(geometry, "LAS", stack_axis=1)
    np.testing.assert_array_equal(axes.turned(array), array)
    assert (axes.stack_axis, axes.remark) == (1, None)


def test_common_codes():
    (_, one), (_, other) = stored(ORNTS[0]), stored(ORNTS[1])
    assert common_codes([one, one]) == "LAS"
    assert common_codes([one, other]) is None
    assert common_codes([]) is None
    nowhere = Geometry(one.path, one.shape, one.spacing_mm, one.affine, is_placed=False)
    assert common_codes([nowhere]) is None
    assert axes_of(nowhere, "RPI").remark is None
