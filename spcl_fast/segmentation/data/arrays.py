"""Types of what volumes are made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
LabelArray = NDArray[np.uint8]
AffineArray = NDArray[np.float64]  # (4, 4), voxel (x, y, z) to millimetres
Spacing = tuple[float, float, float]  # (dz, dy, dx) in millimetres
