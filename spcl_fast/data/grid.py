"""Former name of `spcl_fast.segmentation.data.grid`, kept for one release."""

import warnings

from spcl_fast.segmentation.data.grid import image_to_grid

__all__ = ["image_to_grid"]

warnings.warn(
    "spcl_fast.data.grid is now spcl_fast.segmentation.data.grid; "
    "the former name will be removed in the next release",
    DeprecationWarning,
    stacklevel=2,
)
