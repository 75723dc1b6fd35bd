"""The on-disk layouts that data sets come in, one module each with its ``LAYOUT``.

`spcl_fast.segmentation.data.find` chooses among them; `spcl_fast.segmentation.phantom.layouts`
writes them.
"""

from typing import Literal

LayoutName = Literal[
    "auto", "acdc", "promise12", "mmwhs", "mmwhs4", "msd", "mnms", "ssl4mis", "folder"
]
