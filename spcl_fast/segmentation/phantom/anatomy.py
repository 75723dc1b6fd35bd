"""Size and function of the hearts of each group, and random hearts around them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spcl_fast.segmentation.data.arrays import FloatArray
from spcl_fast.segmentation.phantom.profiles import ANGLES, LV_FILL, bump

# Above the valve plane, in units of the LV radius about its axis: centre x, y and radius of left
# atrium, right atrium, outflow tract of the RV and aortic root.
CHAMBERS = np.array(
    [(0.2, 0.2, 1.05), (-1.4, 0.5, 1.0), (-0.85, -1.05, 0.75), (-0.4, -0.25, 0.5)], np.float32
)


@dataclass(frozen=True)
class Group:
    """Size and function of the hearts of one ACDC group (means over patients).

    Attributes:
        lv_ml: End-diastolic volume of the LV cavity.
        lv_over_myo: LV cavity volume over myocardial volume at ED.
        rv_over_lv: RV over LV cavity volume at ED.
        lv_ef: LV ejection fraction.
        rv_ef: RV ejection fraction.
    """

    lv_ml: float
    lv_over_myo: float
    rv_over_lv: float
    lv_ef: float
    rv_ef: float


GROUPS = {
    "NOR": Group(140.0, 1.36, 1.10, 0.61, 0.55),
    "DCM": Group(255.0, 1.75, 0.65, 0.20, 0.42),
    "HCM": Group(125.0, 0.76, 0.92, 0.68, 0.58),
    "MINF": Group(190.0, 1.45, 0.70, 0.32, 0.54),
    "RV": Group(130.0, 1.42, 1.80, 0.56, 0.36),
}


@dataclass(frozen=True)
class Heart:
    """One patient's heart; lengths in mm, angles in rad, z from the ED valve plane to the apex."""

    group: str
    length_mm: float
    radius_mm: float
    wall_mm: float
    rv_mm3: float
    lv_ef: float
    rv_ef: float
    shortening: float
    harmonics: FloatArray  # (3, 4, 2): endocardium, epicardium, fat; orders 2..5; size and phase
    wall_factor: FloatArray  # (NUM_ANGLES,), mean 1: septal hypertrophy, thinned scar
    mobility: FloatArray  # (NUM_ANGLES,), mean 1
    rv_skew: float
    papillary_rad: tuple[float, float]
    papillary_size: float
    chambers: FloatArray  # (4, 3): x, y, radius over the LV radius, see CHAMBERS

    @property
    def apex_mm(self) -> float:
        """Height z of the epicardial apex, below which no slice shows the heart."""
        return self.length_mm + 0.8 * self.wall_mm


def _wall_thickness(lv_mm3: float, myo_mm3: float, radius: float, length: float) -> float:
    """Solve the wall thickness from the myocardial volume between two similar surfaces."""
    wall = np.linspace(2.0, 40.0, 200)
    outer = np.pi * LV_FILL * (radius + wall) ** 2 * (length + 0.8 * wall)
    return float(np.interp(myo_mm3, outer - lv_mm3, wall))


def _wall_patterns(rng: np.random.Generator, group: str) -> tuple[FloatArray, FloatArray]:
    """Return thickness and mobility of the wall over the angle, each with mean 1."""
    wall_factor, mobility = np.ones_like(ANGLES), np.ones_like(ANGLES)
    site = rng.uniform(-np.pi, np.pi)
    if group == "HCM":
        wall_factor += rng.uniform(0.3, 0.8) * bump(np.pi + rng.uniform(-0.5, 0.5), 0.9)
    if group == "MINF":
        wall_factor -= rng.uniform(0.25, 0.45) * bump(site, 0.8)
        mobility -= rng.uniform(0.6, 0.95) * bump(site, 0.8)
    return wall_factor / wall_factor.mean(), mobility / mobility.mean()


def sample_heart(rng: np.random.Generator, group: str) -> Heart:
    """Draw a heart of one group.

    Args:
        rng: Source of every random number used.
        group: Key of ``GROUPS``.

    Returns:
        The heart, independent of pixel grid and phase.
    """
    mean = GROUPS[group]
    size = rng.uniform(0.8, 1.2)
    lv_mm3 = 1000 * mean.lv_ml * size
    length = 86.0 * (lv_mm3 / 140e3) ** 0.25 * rng.uniform(0.93, 1.07)
    radius = float(np.sqrt(lv_mm3 / (np.pi * LV_FILL * length)))
    myo_mm3 = lv_mm3 / (mean.lv_over_myo * rng.uniform(0.8, 1.22))
    lv_ef = float(np.clip(mean.lv_ef + rng.uniform(-0.06, 0.06), 0.1, 0.78))
    wall_factor, mobility = _wall_patterns(rng, group)
    amplitude = rng.normal(0, 1, (3, 4)) * np.array([0.035, 0.03, 0.012, 0.008])
    phase = rng.uniform(0, 2 * np.pi, (3, 4))
    return Heart(
        group=group,
        length_mm=length,
        radius_mm=radius,
        wall_mm=_wall_thickness(lv_mm3, myo_mm3, radius, length),
        rv_mm3=lv_mm3 * mean.rv_over_lv * rng.uniform(0.78, 1.22),
        lv_ef=lv_ef,
        rv_ef=float(np.clip(mean.rv_ef + rng.uniform(-0.06, 0.06), 0.2, 0.7)),
        shortening=0.13 * lv_ef,
        harmonics=np.stack([amplitude, phase], -1).astype(np.float32),
        wall_factor=wall_factor,
        mobility=mobility,
        rv_skew=rng.uniform(-0.25, 0.15),
        papillary_rad=(rng.uniform(-1.2, -0.6), rng.uniform(0.9, 1.5)),
        papillary_size=rng.uniform(0.7, 1.4),
        chambers=(CHAMBERS * rng.uniform(0.85, 1.15, CHAMBERS.shape)).astype(np.float32),
    )
