"""The shapes that all hearts share: radius over height, and bumps over the angle.

With t = 0 at the valve plane and t = 1 at the endocardial apex the radius of the left ventricle
follows p(t) = sqrt(1 - t^2.2) (1 - .08 (1 - t)^3), and the area of the right one falls to 0 at the
height RV_END.
"""

from __future__ import annotations

import numpy as np

from spcl_fast.segmentation.data.arrays import FloatArray

NUM_ANGLES = 256
ANGLES = ((np.arange(NUM_ANGLES) + 0.5) * (2 * np.pi / NUM_ANGLES) - np.pi).astype(np.float32)
RV_END = 0.88  # the RV ends at this share of the long axis


def profile(t: FloatArray) -> FloatArray:
    """Return the cavity radius at height t in [0, 1] relative to the largest, 0 beyond."""
    inside = np.clip(t, 0.0, 1.0)
    radius: FloatArray = np.sqrt(1 - inside**2.2) * (1 - 0.08 * (1 - inside) ** 3)
    return radius


def rv_profile(t: FloatArray) -> FloatArray:
    """Return the RV area at height t relative to its base, 0 below the end of the RV."""
    area: FloatArray = np.clip(1 - (np.clip(t, 0.0, None) / RV_END) ** 2, 0.0, None) ** 0.85
    return area


_HEIGHTS = ((np.arange(200) + 0.5) / 200).astype(np.float32)
LV_FILL = float((profile(_HEIGHTS) ** 2).mean())  # volume, as a share of the cylinder around it
RV_FILL = float(rv_profile(_HEIGHTS).mean())


def bump(centre: float, width: float) -> FloatArray:
    """Return exp(-(angle - centre)^2 / width^2) on the circle, (NUM_ANGLES,) float32."""
    away = np.angle(np.exp(1j * (ANGLES - centre)))
    weight: FloatArray = np.exp(-((away / width) ** 2)).astype(np.float32)
    return weight
