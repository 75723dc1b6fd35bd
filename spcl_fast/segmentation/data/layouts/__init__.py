"""The on-disk layouts that data sets come in, one module each.

Each module has NAME, ``recognises(root)``, ``class_names(root)``, ``find_cases(root)``, which keeps
the error of a case beside the scans of the others, and ``find_scans(root)``, which raises it.
`spcl_fast.segmentation.data.find` chooses among them.
"""

from typing import Literal

LayoutName = Literal["auto", "acdc", "promise12", "mmwhs", "mmwhs4", "msd", "mnms", "ssl4mis"]
