"""The heart's shape: radii about the long axis as functions of angle, height and phase.

Every surface is star-shaped about the long axis of the left ventricle, so a cross-section is a
polar table r(phi). With t = 0 at the valve plane and t = 1 at the endocardial apex

    endo_ED(phi, t) = R p(t) wobble(phi, t),              p(t) = sqrt(1 - t^2.2) (1 - .08 (1 - t)^3)
    endo_ES^2       = endo_ED^2 (1 - (1 - f) m(phi)),     f = (1 - EF) / (1 - shortening)
    epi_ES^2        = endo_ES^2 + growth (epi_ED^2 - endo_ED^2) / (1 - shortening)

m(phi) is the mobility of the wall (a scar does not move) and has mean 1, so the volumes follow the
ejection fraction. The right ventricle fills r = epi + depth(t) h(phi); depth solves the quadratic
that gives the cross-section its prescribed area, hence the volume its prescribed size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spcl_fast.segmentation.data.arrays import FloatArray

NUM_ANGLES = 256
ANGLES = ((np.arange(NUM_ANGLES) + 0.5) * (2 * np.pi / NUM_ANGLES) - np.pi).astype(np.float32)
MIN_WALL_MM = 4.0
RV_END = 0.88  # the RV ends at this share of the long axis
RV_HALF_WIDTH = 1.35  # rad, from the middle of the septum to the insertion of the RV wall
WALL_GROWTH = 1.15  # labelled myocardial volume, ES over ED, in ACDC about 1.07 to 1.16

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


@dataclass(frozen=True)
class Section:
    """Polar tables of Z cross-sections in one phase, (Z, NUM_ANGLES) float32 in mm.

    Attributes:
        t: (Z,) material height, below 0 above the valve plane.
        endo: LV cavity, 0 where there is none.
        epi: LV outer surface, 0 where there is none.
        rv: RV outer surface of the cavity; equals ``epi`` where there is no RV.
        fat: Thickness of the epicardial fat.
    """

    t: FloatArray
    endo: FloatArray
    epi: FloatArray
    rv: FloatArray
    fat: FloatArray


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
_LV_FILL = float((profile(_HEIGHTS) ** 2).mean())
_RV_FILL = float(rv_profile(_HEIGHTS).mean())


def bump(centre: float, width: float) -> FloatArray:
    """Return exp(-(angle - centre)^2 / width^2) on the circle, (NUM_ANGLES,) float32."""
    away = np.angle(np.exp(1j * (ANGLES - centre)))
    weight: FloatArray = np.exp(-((away / width) ** 2)).astype(np.float32)
    return weight


def _wall_thickness(lv_mm3: float, myo_mm3: float, radius: float, length: float) -> float:
    """Solve the wall thickness from the myocardial volume between two similar surfaces."""
    wall = np.linspace(2.0, 40.0, 200)
    outer = np.pi * _LV_FILL * (radius + wall) ** 2 * (length + 0.8 * wall)
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
    radius = float(np.sqrt(lv_mm3 / (np.pi * _LV_FILL * length)))
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


def _wobble(heart: Heart, surface: int, t: FloatArray) -> FloatArray:
    """Return 1 + sum_k a_k cos(k phi + b_k + 1.5 t) for k = 2..5, (Z, NUM_ANGLES)."""
    order = np.arange(2, 6, dtype=np.float32)[:, None, None]
    amplitude, shift = heart.harmonics[surface, :, :, None, None].transpose(1, 0, 2, 3)
    waves = amplitude * np.cos(order * ANGLES + shift + 1.5 * t[:, None])
    total: FloatArray = 1 + waves.sum(0)
    return total


def _rv_surface(heart: Heart, t: FloatArray, epi: FloatArray, area: FloatArray) -> FloatArray:
    """Return epi + depth h with depth such that the crescent has the given area, (Z, NUM_ANGLES).

    Half the integral of (epi + d h)^2 - epi^2 over phi equals the area: a quadratic in d.
    """
    middle = heart.rv_skew * (1 - t[:, None])
    away = np.angle(np.exp(1j * (ANGLES - np.pi - middle))).astype(np.float32)
    fullness = heart.rv_mm3 / (np.pi * heart.radius_mm**2 * heart.length_mm)
    half_width = RV_HALF_WIDTH * (0.9 + 0.1 * fullness) * (1 - 0.12 * np.clip(t[:, None], 0, 1))
    h = np.clip(1 - np.abs(away / half_width) ** 2.4, 0, None) ** 0.75
    step = 2 * np.pi / NUM_ANGLES
    square = 0.5 * (h**2).sum(1) * step
    linear = (epi * h).sum(1) * step
    depth = (np.sqrt(linear**2 + 4 * square * area) - linear) / (2 * square)
    surface: FloatArray = (epi + depth[:, None] * h).astype(np.float32)
    return surface


def cross_sections(heart: Heart, z_mm: FloatArray, contraction: float) -> Section:
    """Evaluate the heart's surfaces at given heights.

    Args:
        heart: The anatomy.
        z_mm: (Z,) heights along the long axis, 0 at the ED valve plane, growing to the apex.
        contraction: 0 at end-diastole, 1 at end-systole.

    Returns:
        Polar tables; above the valve plane all radii are 0.
    """
    shortening = heart.shortening * contraction
    base = shortening * heart.length_mm  # the valve plane descends, the apex stays
    t = ((z_mm - base) / (heart.length_mm - base)).astype(np.float32)
    below = (t >= 0)[:, None]
    endo_ed = heart.radius_mm * profile(t)[:, None] * _wobble(heart, 0, t)
    t_epi = t * heart.length_mm / heart.apex_mm
    wall = np.maximum(
        (heart.radius_mm + heart.wall_mm) * profile(t_epi) - heart.radius_mm * profile(t), 0
    )
    wall = wall[:, None] * heart.wall_factor * _wobble(heart, 1, t)
    inside_apex = (t_epi < 1)[:, None]
    epi_ed = endo_ed + np.where(inside_apex, np.maximum(wall, MIN_WALL_MM), 0)
    kept = (1 - heart.lv_ef * contraction) / (1 - shortening)
    endo = endo_ed * np.sqrt(np.clip(1 - (1 - kept) * heart.mobility, 0.04, 1.2))
    growth = (1 + (WALL_GROWTH - 1) * contraction) / (1 - shortening)
    epi = np.sqrt(endo**2 + growth * (epi_ed**2 - endo_ed**2))
    endo, epi = np.where(below, endo, 0), np.where(below & inside_apex, epi, 0)
    area = heart.rv_mm3 / (heart.length_mm * _RV_FILL) * rv_profile(t)
    area = area * (1 - heart.rv_ef * contraction) / (1 - shortening) * (t >= 0)
    rv = _rv_surface(heart, t, epi, area)
    fat = 9 * np.clip(np.abs(_wobble(heart, 2, 2 * t) - 1) * 12, 0, 1) * np.where(below, 1.0, 0.3)
    return Section(t, *(table.astype(np.float32) for table in (endo, epi, rv, fat)))


def reach(heart: Heart, direction_rad: float) -> float:
    """Return how far the heart at ED extends from the LV axis in a direction of its own frame, mm.

    Args:
        heart: The anatomy.
        direction_rad: Angle in the heart's frame.

    Returns:
        The largest projection of ventricles and chambers above the valves on the direction.
    """
    heights = np.linspace(0.02, 0.5, 4, dtype=np.float32) * heart.length_mm
    ventricles = cross_sections(heart, heights, 0.0).rv * np.cos(ANGLES - direction_rad)
    x, y, r = heart.chambers.T
    chambers = x * np.cos(direction_rad) + y * np.sin(direction_rad) + r
    return float(max(ventricles.max(), heart.radius_mm * chambers.max()))
