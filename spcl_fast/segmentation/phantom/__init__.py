"""Synthetic short-axis cine cardiac MR: free data with exact labels.

A patient has an end-diastolic (ED) and an end-systolic (ES) volume in the label convention of ACDC:
0 background, 1 RV cavity, 2 LV myocardium, 3 LV cavity. Anatomy, thorax and appearance differ
between patients; group and vendor are known and serve as meta-labels. It can be written in
any of the `layouts`, by default that of ACDC.
"""

from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.patient import PhantomPatient, make_patient
from spcl_fast.segmentation.phantom.writer import write_phantom

__all__ = ["PhantomConfig", "PhantomPatient", "make_patient", "write_phantom"]
