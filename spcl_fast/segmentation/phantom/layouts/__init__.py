"""The phantom in the on-disk layouts of public data sets: one module per layout, same patients.

========= =============================================== ==================== ==================
name      as in                                           volumes per patient  labels
========= =============================================== ==================== ==================
acdc      ACDC                                            ED, ES               RV 1, MYO 2, LV 3
promise12 PROMISE12: MetaImage                            ED                   the heart 1
mmwhs     MM-WHS: CT and MR in turn                       ED                   205, 500, 600
msd       Medical Segmentation Decathlon                  ED                   RV 1, MYO 2, LV 3
nnunet    nnU-Net v2                                      ED, ES               RV 1, MYO 2, LV 3
mnms      M&Ms: a short cine in one 4-D file              ED, ES and between   LV 1, MYO 2, RV 3
ssl4mis   SSL4MIS: HDF5 volumes and slices, lists of them ED, ES               RV 1, MYO 2, LV 3
========= =============================================== ==================== ==================

Only the file format differs: a "CT" is the same synthetic MR image.
"""

from spcl_fast.segmentation.phantom.layouts import (
    acdc,
    mmwhs,
    mnms,
    msd,
    nnunet,
    promise12,
    ssl4mis,
)
from spcl_fast.segmentation.phantom.layouts.layout import LayoutWriter

LAYOUTS: dict[str, LayoutWriter] = {
    "acdc": acdc.LAYOUT,
    "promise12": promise12.LAYOUT,
    "mmwhs": mmwhs.LAYOUT,
    "msd": msd.LAYOUT,
    "nnunet": nnunet.LAYOUT,
    "mnms": mnms.LAYOUT,
    "ssl4mis": ssl4mis.LAYOUT,
}

__all__ = ["LAYOUTS", "LayoutWriter"]
