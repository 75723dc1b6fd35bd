"""The heart on the pixel grid: placing slices, painting tissue and labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spcl_fast.segmentation.data.arrays import FloatArray, LabelArray
from spcl_fast.segmentation.phantom.anatomy import Heart
from spcl_fast.segmentation.phantom.appearance import Texture
from spcl_fast.segmentation.phantom.profiles import NUM_ANGLES
from spcl_fast.segmentation.phantom.surfaces import Section
from spcl_fast.segmentation.phantom.thorax import Tissues

NUM_SUBSLICES = 3  # thin sections averaged into one slice; the middle one gives the labels
RV_WALL_MM = 3.0


@dataclass(frozen=True)
class Stack:
    """Where the slices lie and where the heart is in each.

    Attributes:
        z_mm: (S,) heights of the slices' centres, 0 at the ED valve plane, base to apex.
        dz_mm: Distance between slices.
        centre_mm: LV centre at the base from the image's centre, x and y.
        shift_mm: (S, 2) misregistration between breath-holds, x and y.
        tilt: Drift of the LV centre along the stack, mm per mm, x and y.
        rotation_rad: Rotation of the heart in plane.
        twist_rad: Further rotation over 80 mm of height.
    """

    z_mm: FloatArray
    dz_mm: float
    centre_mm: tuple[float, float]
    shift_mm: FloatArray
    tilt: tuple[float, float]
    rotation_rad: float
    twist_rad: float


def sample_stack(rng: np.random.Generator, heart: Heart) -> Stack:
    """Plan 8 to 12 slices from about the valve plane to about the apex of a heart."""
    first = rng.uniform(-4.5, 8.0)
    span = heart.apex_mm + rng.uniform(-12.0, 3.0) - first
    dz = max(rng.uniform(8.4, 10.0), span / 11.5)
    num_slices = int(np.clip(span // dz + 1, 8, 12))
    return Stack(
        z_mm=(first + dz * np.arange(num_slices)).astype(np.float32),
        dz_mm=round(dz, 3),
        centre_mm=(float(np.clip(rng.normal(-8, 9), -25, 12)), float(rng.uniform(-16, 14))),
        shift_mm=rng.normal(0, 1.2, (num_slices, 2)).astype(np.float32),
        tilt=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
        rotation_rad=np.deg2rad(rng.uniform(-35, 35)),
        twist_rad=np.deg2rad(rng.uniform(-12, 12)),
    )


@dataclass(frozen=True)
class HeartGrid:
    """Pixels of the Z = NUM_SUBSLICES S thin sections in the heart's own frame.

    Attributes:
        z_mm: (Z,) heights.
        x: (Z, H, W) mm, the septum at negative x.
        y: (Z, H, W) mm.
        rho: (Z, H, W) mm from the axis of the LV.
        entry: (Z, H, W) index into a flattened (Z, NUM_ANGLES) table.
    """

    z_mm: FloatArray
    x: FloatArray
    y: FloatArray
    rho: FloatArray
    entry: NDArray[np.int64]

    def at(self, table: FloatArray) -> FloatArray:
        """Look up a (Z, NUM_ANGLES) polar table at every pixel."""
        values: FloatArray = table.reshape(-1)[self.entry]
        return values


def heart_grid(stack: Stack, axis_mm: FloatArray) -> HeartGrid:
    """Return the pixels in the frame of the heart.

    Args:
        stack: The slices.
        axis_mm: (size,) positions of the pixels along x and along y, 0 at the image's centre.

    Returns:
        The grid that both phases share.
    """
    thin = (np.arange(NUM_SUBSLICES) + 0.5) / NUM_SUBSLICES - 0.5
    z = (stack.z_mm[:, None] + stack.dz_mm * thin).astype(np.float32).reshape(-1, 1, 1)
    shift = np.repeat(stack.shift_mm, NUM_SUBSLICES, axis=0)[..., None, None]
    x = axis_mm[None, None, :] - np.float32(stack.centre_mm[0]) - shift[:, 0] - stack.tilt[0] * z
    y = axis_mm[None, :, None] - np.float32(stack.centre_mm[1]) - shift[:, 1] - stack.tilt[1] * z
    angle = stack.rotation_rad + stack.twist_rad * z / 80
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    x, y = (x * cos + y * sin).astype(np.float32), (y * cos - x * sin).astype(np.float32)
    phi = np.arctan2(y, x)
    column = ((phi + np.float32(np.pi)) * np.float32(NUM_ANGLES / (2 * np.pi))).astype(np.int64)
    entry = np.minimum(column, NUM_ANGLES - 1) + NUM_ANGLES * np.arange(len(z))[:, None, None]
    return HeartGrid(z.reshape(-1), x, y, np.sqrt(x * x + y * y), entry)


def draw_heart(
    heart: Heart,
    section: Section,
    tissues: Tissues,
    grid: HeartGrid,
    texture: Texture,
) -> tuple[FloatArray, NDArray[np.bool_], LabelArray]:
    """Paint the heart in every thin section.

    Args:
        heart: The anatomy.
        section: Its surfaces at ``grid.z_mm`` in one phase.
        tissues: The signal of each tissue.
        grid: The pixels.
        texture: Noise of the tissues.

    Returns:
        Signal, float32; where the heart covers the chest, bool; labels, uint8; each (Z, H, W).
    """
    fine, coarse = (np.repeat(field, NUM_SUBSLICES, axis=0) for field in texture)
    endo, epi, rv = grid.at(section.endo), grid.at(section.epi), grid.at(section.rv)
    t, rho = section.t[:, None, None], grid.rho
    in_lv, in_epi = rho < endo, rho < epi
    in_rv = (rho < rv) & ~in_epi
    labels = np.where(in_lv, 3, np.where(in_epi, 2, in_rv)).astype(np.uint8)

    wall = np.where(rv > epi + 1, rv + RV_WALL_MM, epi)
    covered = (rho < wall + grid.at(section.fat)) & (wall > 0)
    signal = np.full(rho.shape, tissues.fat * 0.8, np.float32)
    signal[rho < wall] = tissues.myocardium * 1.1
    np.copyto(
        signal,
        (tissues.rv_blood * (1 + 0.12 * coarse + 0.04 * fine)).astype(np.float32),
        where=in_rv,
    )
    trabecula = fine + 0.6 * coarse
    signal[in_rv & (rho > rv - 7) & (trabecula > 0.6) & (t > 0.1)] = tissues.myocardium * 1.4
    band = np.abs(grid.y - 0.25 * grid.x - 4) < 1.6
    signal[in_rv & band & (t > 0.45) & (t < 0.62)] = tissues.myocardium * 1.3
    muscle = tissues.myocardium * (1 + 0.06 * fine + 0.06 * coarse)
    np.copyto(signal, muscle.astype(np.float32), where=in_epi)
    np.copyto(
        signal, (tissues.blood * (1 + 0.11 * coarse + 0.03 * fine)).astype(np.float32), where=in_lv
    )
    signal[in_lv & (rho > endo - 9 * t) & (trabecula > 0.4)] = tissues.myocardium * 1.5
    _draw_papillary(signal, heart, section, tissues, grid, in_lv)
    _draw_chambers(signal, covered, heart, section, tissues, grid, coarse)
    return signal, covered, labels


def _draw_papillary(
    signal: FloatArray,
    heart: Heart,
    section: Section,
    tissues: Tissues,
    grid: HeartGrid,
    in_lv: NDArray[np.bool_],
) -> None:
    """Paint both papillary muscles dark; they stay labelled LV, as in ACDC."""
    radius = section.endo.mean(1)[:, None, None]
    present = in_lv & (section.t > 0.2)[:, None, None] & (section.t < 0.75)[:, None, None]
    for angle in heart.papillary_rad:
        x, y = 0.66 * radius * np.cos(angle), 0.66 * radius * np.sin(angle)
        distance = (grid.x - x) ** 2 + (grid.y - y) ** 2
        size = heart.papillary_size * (2.2 + 0.13 * radius)
        signal[present & (distance < size**2)] = tissues.myocardium * 1.15


def _draw_chambers(
    signal: FloatArray,
    covered: NDArray[np.bool_],
    heart: Heart,
    section: Section,
    tissues: Tissues,
    grid: HeartGrid,
    coarse: FloatArray,
) -> None:
    """Paint atria, aortic root and outflow tract above the valve plane; they are not labelled."""
    if not (section.t < 0).any():
        return
    last = int(np.flatnonzero(section.t < 0)[-1]) + 1  # sections run from base to apex
    blood = (tissues.blood * (0.95 + 0.1 * coarse[:last])).astype(np.float32)
    radius = heart.radius_mm * (1 + 0.05 * coarse[:last])
    for cx, cy, r in heart.chambers:
        x, y = grid.x[:last] - cx * heart.radius_mm, grid.y[:last] - cy * heart.radius_mm
        distance = np.sqrt(x * x + y * y) - r * radius
        wall = distance < 2
        signal[:last][wall] = tissues.myocardium * 1.2
        covered[:last] |= wall
        np.copyto(signal[:last], blood, where=distance < 0)
