"""The surroundings of the heart: chest wall, lungs, diaphragm and look-alikes of its chambers.

The descending aorta is a bright disc, the stomach a dark-walled ring, vessels in lung and liver are
bright spots: without them a segmenter could find the heart by intensity alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spcl_fast.segmentation.data.arrays import FloatArray
from spcl_fast.segmentation.phantom.anatomy import Heart
from spcl_fast.segmentation.phantom.appearance import Texture
from spcl_fast.segmentation.phantom.surfaces import reach

CHEST_WALL_MM = 9.0  # muscle and ribs under the fat


@dataclass(frozen=True)
class Tissues:
    """Signal of each tissue before the receive coil and the vendor's post-processing."""

    blood: float
    rv_blood: float
    myocardium: float
    fat: float
    lung: float
    muscle: float
    liver: float
    spleen: float
    stomach: float


def sample_tissues(rng: np.random.Generator) -> Tissues:
    """Draw the tissue signals of one patient; blood is 2.8 to 5 times myocardium."""
    blood = rng.uniform(0.68, 0.95)
    return Tissues(
        blood=blood,
        rv_blood=blood * rng.uniform(0.75, 1.0),
        myocardium=blood * rng.uniform(0.2, 0.36),
        fat=rng.uniform(0.65, 0.95),
        lung=rng.uniform(0.03, 0.1),
        muscle=rng.uniform(0.18, 0.34),
        liver=rng.uniform(0.24, 0.46),
        spleen=rng.uniform(0.25, 0.5),
        stomach=rng.uniform(0.15, 0.85),
    )


@dataclass(frozen=True)
class Thorax:
    """One patient's chest in mm about the centre of the LV at the base, x to the left of the body.

    Attributes:
        front_rad: Direction from the heart to the front of the chest, the normal of the outline.
        gap_mm: Distance of the skin in that direction at the base.
        closing: Mean decrease of the gap per mm over the first 90 mm towards the apex.
        half_axes: Of the outline, across and along that direction.
        fat_mm: Thickness of the subcutaneous fat.
        diaphragm: Height y under the heart at the base, rise per mm towards the apex, x of the top.
        liver_edge: x where the liver ends and stomach and spleen begin.
        stomach: Centre x, y relative to the diaphragm, radius, share of the radius that is lumen.
        spleen: Centre x, y relative to the diaphragm, half axes.
        spine: Centre x, y, radius.
        aorta: Centre x, y, radius.
        ribs: Number per turn and phase.
        vessels: Thresholds of the vessels in lung and liver, in standard deviations.
    """

    front_rad: float
    gap_mm: float
    closing: float
    half_axes: tuple[float, float]
    fat_mm: float
    diaphragm: tuple[float, float, float]
    liver_edge: float
    stomach: tuple[float, float, float, float]
    spleen: tuple[float, float, float, float]
    spine: tuple[float, float, float]
    aorta: tuple[float, float, float]
    ribs: tuple[float, float]
    vessels: tuple[float, float]


def sample_thorax(rng: np.random.Generator, heart: Heart, rotation_rad: float) -> Thorax:
    """Draw the chest of one patient around the heart, rotated in plane by ``rotation_rad``."""
    u = rng.uniform
    distance, direction, radius = u(54, 72), u(0.75, 1.9), u(8, 12.5)
    aorta = distance * np.cos(direction), distance * np.sin(direction), radius
    front, fat_mm = u(-2.6, -1.1), u(7, 24)
    return Thorax(
        front_rad=front,
        gap_mm=reach(heart, front - rotation_rad) + fat_mm + CHEST_WALL_MM + u(2, 24),
        closing=u(0.1, 0.4),
        half_axes=(u(130, 165), u(108, 140)),
        fat_mm=fat_mm,
        diaphragm=(u(42, 70), u(0.2, 0.55), u(-50, 20)),
        liver_edge=u(-25, 25),
        stomach=(u(20, 55), u(18, 40), u(17, 28), u(0.5, 0.85)),
        spleen=(u(50, 85), u(20, 45), u(18, 30), u(14, 26)),
        spine=(aorta[0] - u(26, 44), aorta[1] + u(14, 28), u(16, 21)),
        aorta=aorta,
        ribs=(u(9, 14), u(0, 2 * np.pi)),
        vessels=(u(1.8, 2.5), u(1.7, 2.4)),
    )


class Place(NamedTuple):
    """Where the pixels of a stack are, relative to the heart.

    Attributes:
        x: (1, 1, W) mm from the LV centre.
        y: (1, H, 1) mm from the LV centre.
        z: (S, 1, 1) mm from the valve plane towards the apex.
    """

    x: FloatArray
    y: FloatArray
    z: FloatArray


def _ellipse(x: FloatArray, y: FloatArray, a: float, b: float) -> FloatArray:
    level: FloatArray = (x / np.float32(a)) ** 2 + (y / np.float32(b)) ** 2
    return level


def draw_thorax(thorax: Thorax, tissues: Tissues, place: Place, texture: Texture) -> FloatArray:
    """Paint the chest without the heart.

    Args:
        thorax: The geometry.
        tissues: The signal of each tissue.
        place: Where the pixels are.
        texture: Noise of the tissues.

    Returns:
        The signal, (S, H, W) float32.
    """
    (x, y, z), (fine, coarse) = place, texture
    a, b = thorax.half_axes
    sin, cos = np.float32(np.sin(thorax.front_rad)), np.float32(np.cos(thorax.front_rad))
    u = y * cos - x * sin
    # The chest closes in late along the stack, where the heart is slim.
    gap = np.float32(thorax.gap_mm) - np.float32(thorax.closing / 90) * z * np.abs(z)
    v = gap - (x * cos + y * sin) - np.float32(b)
    depth = np.float32(b) * (1 - np.sqrt(_ellipse(u, v, a, b))) + 1.5 * coarse
    fat_mm = thorax.fat_mm * (1.1 - 0.4 * v / np.float32(b))  # thicker in front
    chest = depth > fat_mm + CHEST_WALL_MM

    signal = np.where(fine > thorax.vessels[0], np.float32(0.75 * tissues.blood), tissues.lung)
    signal = signal.astype(np.float32)
    signal += np.float32(0.02) * coarse
    _draw_abdomen(signal, thorax, tissues, place, texture)
    _draw_mediastinum(signal, thorax, tissues, place, texture)

    signal = np.where(chest, signal, tissues.muscle * (1 + 0.15 * fine))
    turns = np.arctan2(v / np.float32(b), u / np.float32(a)) * np.float32(thorax.ribs[0])
    wall = depth - fat_mm
    rib = (np.cos(turns + np.float32(thorax.ribs[1])) > 0.55) & (np.abs(wall - 5) < 3)
    signal[rib] = 0.6 * tissues.fat
    signal = np.where(wall < 0, tissues.fat * (0.95 + 0.06 * coarse), signal)
    signal = np.where(depth < 0, 0, signal)
    return signal.astype(np.float32)


def _draw_abdomen(
    signal: FloatArray, thorax: Thorax, tissues: Tissues, place: Place, texture: Texture
) -> None:
    """Paint liver, stomach, spleen and fat below the diaphragm into ``signal``."""
    (x, y, z), (fine, coarse) = place, texture
    under, rise, top = thorax.diaphragm
    dome = under - rise * z + 0.004 * (x - top) ** 2
    below = y - dome + 1.5 * coarse  # mm below the diaphragm
    inside = below > 0
    fat = tissues.fat * np.clip(0.45 + 0.18 * coarse + 0.05 * fine, 0.15, 0.8)
    np.copyto(signal, fat.astype(np.float32), where=inside)
    liver_vessel = coarse + 0.5 * fine > thorax.vessels[1]
    liver = np.where(liver_vessel, 0.8 * tissues.blood, tissues.liver * (1 + 0.05 * fine))
    edge = thorax.liver_edge + 0.25 * (y - under)
    np.copyto(signal, liver.astype(np.float32), where=inside & (x + 3 * coarse < edge))

    px, py, pa, pb = thorax.spleen
    level = _ellipse(x - px, y - under - py + rise * z, pa, pb)
    signal[(level < 1) & inside] = tissues.spleen
    sx, sy, radius, lumen = thorax.stomach
    level = _ellipse(x - sx, y - under - sy + rise * z, radius, 0.8 * radius) + 0.12 * coarse
    signal[(level < 1) & inside] = tissues.muscle * 1.1
    content = np.float32(tissues.stomach) * (1 + 0.25 * fine)
    np.copyto(signal, content.astype(np.float32), where=(level < lumen**2) & inside)
    signal[np.abs(below) < 1.5] = tissues.muscle


def _draw_mediastinum(
    signal: FloatArray, thorax: Thorax, tissues: Tissues, place: Place, texture: Texture
) -> None:
    """Paint the fat and muscle beside the heart, the spine and the aorta into ``signal``."""
    (x, y, z), (fine, coarse) = place, texture
    shrink = 1 - 0.004 * np.clip(z, 0, 80)
    level = _ellipse((x + 42) / shrink, (y - 8) / shrink, 44, 52) + 0.1 * coarse
    share = np.clip(0.4 + 0.6 * coarse, 0, 1)
    beside = 0.75 * tissues.fat * share + 1.3 * tissues.muscle * (1 - share) + 0.04 * fine
    np.copyto(signal, beside.astype(np.float32), where=level < 1)

    px, py, radius = thorax.spine
    level = _ellipse(x - px, y - py, 1.25 * radius, radius) + 0.05 * coarse
    signal[level < 1.5] = 0.8 * tissues.muscle
    marrow = (0.45 * tissues.fat * (1 + 0.12 * fine)).astype(np.float32)
    np.copyto(signal, marrow, where=level < 1)
    canal = _ellipse(x - px - 2, y - py - 1.5 * radius, 8, 7)
    np.copyto(signal, 0.85 * tissues.blood, where=canal < 1)  # cerebrospinal fluid
    ax, ay, radius = thorax.aorta
    distance = _ellipse(x - ax - 0.08 * z, y - ay, 1, 1)
    signal[distance < (radius + 2) ** 2] = tissues.myocardium
    signal[distance < radius**2] = tissues.blood
