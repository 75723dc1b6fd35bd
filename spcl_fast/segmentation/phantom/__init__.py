"""Short-axis cine cardiac MR that is drawn, not acquired: free data with exact labels.

A patient has an end-diastolic (ED) and an end-systolic (ES) volume in the label convention of ACDC:
0 background, 1 RV cavity, 2 LV myocardium, 3 LV cavity. Anatomy, thorax and appearance differ
between patients; group and vendor are known and serve as meta-labels. On disk it takes the form of
any data set in `layouts`, ACDC's by default.
"""

from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.patient import PhantomPatient, make_patient
from spcl_fast.segmentation.phantom.writer import write_acdc, write_phantom

__all__ = ["PhantomConfig", "PhantomPatient", "make_patient", "write_acdc", "write_phantom"]
