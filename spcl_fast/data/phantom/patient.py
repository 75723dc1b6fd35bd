"""One patient of the phantom: anatomy, chest and scanner put together on a pixel grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spcl_fast.data.phantom.anatomy import (
    GROUPS,
    NUM_ANGLES,
    Array,
    Heart,
    Section,
    cross_sections,
    sample_heart,
)
from spcl_fast.data.phantom.appearance import VENDORS, acquire, sample_scanner, smooth_noise
from spcl_fast.data.phantom.thorax import Tissues, draw_thorax, sample_thorax, sample_tissues

NUM_SUBSLICES = 3  # thin sections averaged into one slice; the middle one gives the labels
RV_WALL_MM = 3.0
CONTRACTION = {"ED": 0.0, "ES": 1.0}


@dataclass(frozen=True)
class PhantomConfig:
    """What a phantom data set holds.

    Attributes:
        num_patients: Patients; each has one ED and one ES volume.
        size: Pixels along each side of a slice.
        pixel_mm: Mean pixel size in plane. Up to 3 mm keeps every wall a closed ring.
        pixel_spread: Largest relative deviation of a patient's pixel size from the mean.
        flip_probability: Share of patients whose stack is stored apex first.
        seed: Changes every patient.
    """

    num_patients: int = 24
    size: int = 96
    pixel_mm: float = 2.4
    pixel_spread: float = 0.1
    flip_probability: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_patients < 1:
            raise ValueError(f"num_patients must be at least 1, got {self.num_patients}")
        if self.size < 32:
            raise ValueError(f"size must be at least 32 pixels, got {self.size}")
        if not self.pixel_mm > 0:
            raise ValueError(f"pixel_mm must be positive, got {self.pixel_mm}")
        if not 0 <= self.pixel_spread < 1:
            raise ValueError(f"pixel_spread must be in [0, 1), got {self.pixel_spread}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability must be in [0, 1], got {self.flip_probability}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class PhantomPatient:
    """One patient, both phases.

    Attributes:
        name: "patient001" for index 0.
        group: ACDC group: NOR, DCM, HCM, MINF or RV.
        vendor: Make of the scanner: A, B or C.
        images: By phase "ED" and "ES", (S, H, W) float32, whole numbers, slices base to apex.
        masks: By phase, (S, H, W) uint8: 0 background, 1 RV, 2 myocardium, 3 LV.
        frames: Frame number of each phase in the cine, from 1.
        num_frames: Frames of the cine.
        spacing_mm: (dz, dy, dx).
        height_cm: Body height.
        weight_kg: Body weight.
    """

    name: str
    group: str
    vendor: str
    images: Mapping[str, Array]
    masks: Mapping[str, NDArray[np.uint8]]
    frames: Mapping[str, int]
    num_frames: int
    spacing_mm: tuple[float, float, float]
    height_cm: float
    weight_kg: float


@dataclass(frozen=True)
class _Stack:
    """Where the slices lie: heights of the slices' centres and the heart's place in each."""

    z_mm: Array  # (S,)
    dz_mm: float
    centre_mm: tuple[float, float]  # LV centre at the base from the image centre, x and y
    shift_mm: Array  # (S, 2) breath-hold misregistration
    tilt: tuple[float, float]  # mm per mm along the stack
    rotation_rad: float
    twist_rad: float  # over 80 mm


def _sample_stack(rng: np.random.Generator, heart: Heart) -> _Stack:
    first = rng.uniform(-4.5, 8.0)
    span = heart.apex_mm + rng.uniform(-12.0, 3.0) - first
    dz = max(rng.uniform(8.4, 10.0), span / 11.5)
    num_slices = int(np.clip(span // dz + 1, 8, 12))
    return _Stack(
        z_mm=(first + dz * np.arange(num_slices)).astype(np.float32),
        dz_mm=round(dz, 3),
        centre_mm=(float(np.clip(rng.normal(-8, 9), -25, 12)), float(rng.uniform(-16, 14))),
        shift_mm=rng.normal(0, 1.2, (num_slices, 2)).astype(np.float32),
        tilt=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
        rotation_rad=np.deg2rad(rng.uniform(-35, 35)),
        twist_rad=np.deg2rad(rng.uniform(-12, 12)),
    )


@dataclass(frozen=True)
class _Grid:
    """Pixels of all thin sections in the heart's own frame, (Z, H, W) with Z = 3 S."""

    z_mm: Array  # (Z,)
    x: Array
    y: Array
    rho: Array
    entry: NDArray[np.int64]  # index into a flattened (Z, NUM_ANGLES) table

    def at(self, table: Array) -> Array:
        """Look up a (Z, NUM_ANGLES) polar table at every pixel."""
        values: Array = table.reshape(-1)[self.entry]
        return values


def _heart_grid(stack: _Stack, axis_mm: Array) -> _Grid:
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
    return _Grid(z.reshape(-1), x, y, np.sqrt(x * x + y * y), entry)


def _draw_heart(
    heart: Heart, section: Section, tissues: Tissues, grid: _Grid, texture: tuple[Array, Array]
) -> tuple[Array, NDArray[np.bool_], NDArray[np.uint8]]:
    """Return signal, coverage and labels of the thin sections, each (Z, H, W)."""
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
    signal: Array,
    heart: Heart,
    section: Section,
    tissues: Tissues,
    grid: _Grid,
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
    signal: Array,
    covered: NDArray[np.bool_],
    heart: Heart,
    section: Section,
    tissues: Tissues,
    grid: _Grid,
    coarse: Array,
) -> None:
    """Paint atria, aortic root and outflow tract above the valve plane; none is labelled."""
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


def make_patient(config: PhantomConfig, index: int) -> PhantomPatient:
    """Draw one patient.

    Args:
        config: The data set.
        index: Which patient, 0 to ``num_patients - 1``. Groups rotate with the index, vendors
            every five patients.

    Returns:
        Both phases. Equal ``config`` and ``index`` give bitwise equal arrays, whichever other
        patients were drawn; ``num_patients`` has no influence.

    Raises:
        ValueError: If ``index`` is out of range.
    """
    if not 0 <= index < config.num_patients:
        raise ValueError(f"index must be in 0..{config.num_patients - 1}, got {index}")
    streams = np.random.SeedSequence((config.seed, index)).spawn(4)
    shape_rng, look_rng, texture_rng, noise_rng = map(np.random.default_rng, streams)
    group, vendor = group_of(index), vendor_of(index)
    heart = sample_heart(shape_rng, group)
    stack = _sample_stack(shape_rng, heart)
    thorax, tissues = sample_thorax(shape_rng, heart, stack.rotation_rad), sample_tissues(look_rng)
    spread = config.pixel_spread * shape_rng.uniform(-1, 1)
    pixel_mm = round(config.pixel_mm * (1 + spread), 4)
    scanner = sample_scanner(look_rng, vendor, len(stack.z_mm))

    shape = (len(stack.z_mm), config.size, config.size)
    fine = smooth_noise(texture_rng, shape, (0.3, 2.2 / pixel_mm))
    coarse = smooth_noise(texture_rng, shape, (0.5, 6.0 / pixel_mm))
    axis_mm = ((np.arange(config.size) + 0.5 - config.size / 2) * pixel_mm).astype(np.float32)
    background = draw_thorax(
        thorax,
        tissues,
        axis_mm[None, None, :] - np.float32(stack.centre_mm[0]),
        axis_mm[None, :, None] - np.float32(stack.centre_mm[1]),
        stack.z_mm[:, None, None],
        (fine, coarse),
    )
    grid = _heart_grid(stack, axis_mm)
    images, masks = {}, {}
    flip = -1 if shape_rng.random() < config.flip_probability else 1
    for phase, contraction in CONTRACTION.items():
        section = cross_sections(heart, grid.z_mm, contraction)
        thin, covered, labels = _draw_heart(heart, section, tissues, grid, (fine, coarse))
        thin *= covered
        slices = (shape[0], NUM_SUBSLICES, *shape[1:])
        open_share = 1 - covered.reshape(slices).mean(1, dtype=np.float32)
        signal = thin.reshape(slices).mean(1) + background * open_share
        images[phase] = acquire(noise_rng, signal, scanner, pixel_mm)[::flip].copy()
        masks[phase] = labels[NUM_SUBSLICES // 2 :: NUM_SUBSLICES][::flip].copy()
    height_cm = round(shape_rng.uniform(155, 190), 1)
    return PhantomPatient(
        name=patient_name(index),
        group=group,
        vendor=vendor,
        images=images,
        masks=masks,
        frames={"ED": 1, "ES": int(shape_rng.integers(8, 14))},
        num_frames=int(shape_rng.integers(20, 36)),
        spacing_mm=(stack.dz_mm, pixel_mm, pixel_mm),
        height_cm=height_cm,
        weight_kg=round(shape_rng.uniform(20, 30) * (height_cm / 100) ** 2, 1),
    )


def patient_name(index: int) -> str:
    """Return the name of a patient as ACDC counts, from 1."""
    return f"patient{index + 1:03d}"


def group_of(index: int) -> str:
    """Return the ACDC group of a patient: all groups appear within any five patients."""
    return list(GROUPS)[index % len(GROUPS)]


def vendor_of(index: int) -> str:
    """Return the vendor of a patient; it changes every five, so each vendor sees every group."""
    return list(VENDORS)[index // len(GROUPS) % len(VENDORS)]
