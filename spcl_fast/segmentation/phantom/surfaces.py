"""The surfaces of a heart: radii about the long axis as functions of angle, height and phase.

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
from spcl_fast.segmentation.phantom.anatomy import Heart
from spcl_fast.segmentation.phantom.profiles import (
    ANGLES,
    NUM_ANGLES,
    RV_FILL,
    profile,
    rv_profile,
)

MIN_WALL_MM = 4.0
RV_HALF_WIDTH = 1.35  # rad, from the middle of the septum to the insertion of the RV wall
WALL_GROWTH = 1.15  # labelled myocardial volume, ES over ED, in ACDC about 1.07 to 1.16


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
    area = heart.rv_mm3 / (heart.length_mm * RV_FILL) * rv_profile(t)
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
