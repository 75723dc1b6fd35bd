"""Classes of a data set by the names of a network's."""

from pathlib import Path

import pytest

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.scan import IGNORED, OTHER_VALUES, SHORT_AXIS_CLASSES, Scan
from spcl_fast.segmentation.evaluate.classes import matched_by_name


def scan(names, classes=None):
    return Scan("a", "a", None, Path("a.nii"), Path("b.nii"), classes=classes, class_names=names)


def test_another_order_and_spelling():
    (found,) = matched_by_name([scan(("bg", "lv ", "Myo", "RV"))], SHORT_AXIS_CLASSES)
    assert found.class_names == SHORT_AXIS_CLASSES
    assert {value: found.classes[value] for value in range(4)} == {0: 0, 1: 3, 2: 2, 3: 1}


def test_values_that_have_classes_already():
    values = {OTHER_VALUES: 0, 0: 0, 500: 1, 600: 2, 7: IGNORED}
    (found,) = matched_by_name([scan(("background", "b", "a"), values)], ("background", "a", "b"))
    assert found.classes == {OTHER_VALUES: 0, 0: 0, 500: 2, 600: 1, 7: IGNORED}


def test_the_same_classes_change_nothing():
    original = scan(SHORT_AXIS_CLASSES)
    assert matched_by_name([original], SHORT_AXIS_CLASSES) == [original]


@pytest.mark.parametrize("names", [("background", "LV", "MYO", "LA"), ("background", "RV", "MYO")])
def test_other_classes(names):
    with pytest.raises(DataError, match=r"a\.nii must have the classes .* RV, MYO, LV, got "):
        matched_by_name([scan(names)], SHORT_AXIS_CLASSES)
