"""Bring the classes of a data set to the numbers that a network knows them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.scan import IGNORED, Scan


def matched_by_name(scans: Sequence[Scan], names: Sequence[str]) -> list[Scan]:
    """Return scans whose classes have the numbers of a network's.

    Args:
        scans: Scans of one data set.
        names: The classes of the network, the background first; upper and lower case are alike.

    Raises:
        DataError: The data set has other classes.
    """
    return [_matched(scan, tuple(names)) for scan in scans]


def _matched(scan: Scan, names: tuple[str, ...]) -> Scan:
    known, own = ([name.strip().lower() for name in some[1:]] for some in (names, scan.class_names))
    if sorted(known) != sorted(own):
        raise DataError(
            f"{scan.image} must have the classes that the run was trained on, "
            f"{', '.join(names[1:])}, got {', '.join(scan.class_names[1:])}; --match number "
            "compares classes by number."
        )
    if known == own:
        return replace(scan, class_names=names)
    number = {0: 0, IGNORED: IGNORED} | {
        k: 1 + known.index(own[k - 1]) for k in range(1, len(names))
    }
    values = scan.classes or {k: k for k in range(len(names))}
    classes = {value: number[k] for value, k in values.items()}
    return replace(scan, classes=classes, class_names=names)
