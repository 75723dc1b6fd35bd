"""One patient of the phantom: anatomy, chest and scanner on a pixel grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spcl_fast.segmentation.data.arrays import FloatArray, LabelArray, Spacing
from spcl_fast.segmentation.phantom.anatomy import GROUPS, Heart, sample_heart
from spcl_fast.segmentation.phantom.appearance import (
    VENDORS,
    Scanner,
    Texture,
    acquire,
    sample_scanner,
    smooth_noise,
)
from spcl_fast.segmentation.phantom.config import PhantomConfig
from spcl_fast.segmentation.phantom.heart import (
    NUM_SUBSLICES,
    HeartGrid,
    Stack,
    draw_heart,
    heart_grid,
    sample_stack,
)
from spcl_fast.segmentation.phantom.surfaces import cross_sections
from spcl_fast.segmentation.phantom.thorax import (
    Place,
    Thorax,
    Tissues,
    draw_thorax,
    sample_thorax,
    sample_tissues,
)

CONTRACTION = {"ED": 0.0, "ES": 1.0}


@dataclass(frozen=True)
class PhantomPatient:
    """One patient, both phases.

    Attributes:
        name: "patient001" for index 0.
        group: ACDC group: NOR, DCM, HCM, MINF or RV.
        vendor: Vendor of the scanner: A, B or C.
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
    images: Mapping[str, FloatArray]
    masks: Mapping[str, LabelArray]
    frames: Mapping[str, int]
    num_frames: int
    spacing_mm: Spacing
    height_cm: float
    weight_kg: float


@dataclass(frozen=True)
class _Scene:
    """All random properties of a patient except texture and noise."""

    heart: Heart
    stack: Stack
    thorax: Thorax
    tissues: Tissues
    scanner: Scanner
    pixel_mm: float
    flipped: bool


def make_patient(config: PhantomConfig, index: int) -> PhantomPatient:
    """Draw one patient.

    Args:
        config: The data set.
        index: Which patient, 0 to ``num_patients - 1``. Groups rotate with the index, vendors
            every five patients.

    Returns:
        Both phases. Equal ``config`` and ``index`` give bitwise equal arrays, regardless of
        ``num_patients`` and of which other patients are drawn.

    Raises:
        ValueError: If ``index`` is out of range.
    """
    if not 0 <= index < config.num_patients:
        raise ValueError(f"index must be in 0..{config.num_patients - 1}, got {index}")
    streams = np.random.SeedSequence((config.seed, index)).spawn(5)
    shape_rng, look_rng, texture_rng, noise_rng, record_rng = map(np.random.default_rng, streams)
    scene = _sample_scene(shape_rng, look_rng, config, index)
    images, masks = _draw(texture_rng, noise_rng, scene, config.size)
    height_cm = round(record_rng.uniform(155, 190), 1)
    return PhantomPatient(
        name=patient_name(index),
        group=group_of(index),
        vendor=vendor_of(index),
        images=images,
        masks=masks,
        frames={"ED": 1, "ES": int(record_rng.integers(8, 14))},
        num_frames=int(record_rng.integers(20, 36)),
        spacing_mm=(scene.stack.dz_mm, scene.pixel_mm, scene.pixel_mm),
        height_cm=height_cm,
        weight_kg=round(record_rng.uniform(20, 30) * (height_cm / 100) ** 2, 1),
    )


def _sample_scene(
    shape_rng: np.random.Generator,
    look_rng: np.random.Generator,
    config: PhantomConfig,
    index: int,
) -> _Scene:
    heart = sample_heart(shape_rng, group_of(index))
    stack = sample_stack(shape_rng, heart)
    return _Scene(
        heart=heart,
        stack=stack,
        thorax=sample_thorax(shape_rng, heart, stack.rotation_rad),
        tissues=sample_tissues(look_rng),
        scanner=sample_scanner(look_rng, vendor_of(index), len(stack.z_mm)),
        pixel_mm=round(config.pixel_mm * (1 + config.pixel_spread * shape_rng.uniform(-1, 1)), 4),
        flipped=bool(shape_rng.random() < config.flip_probability),
    )


def _draw(
    texture_rng: np.random.Generator, noise_rng: np.random.Generator, scene: _Scene, size: int
) -> tuple[dict[str, FloatArray], dict[str, LabelArray]]:
    """Return images and masks of both phases, which differ in contraction and noise only."""
    shape = (len(scene.stack.z_mm), size, size)
    texture = Texture(
        fine=smooth_noise(texture_rng, shape, (0.3, 2.2 / scene.pixel_mm)),
        coarse=smooth_noise(texture_rng, shape, (0.5, 6.0 / scene.pixel_mm)),
    )
    axis_mm = ((np.arange(size) + 0.5 - size / 2) * scene.pixel_mm).astype(np.float32)
    chest = _draw_chest(scene, axis_mm, texture)
    grid = heart_grid(scene.stack, axis_mm)
    order = -1 if scene.flipped else 1
    images, masks = {}, {}
    for phase, contraction in CONTRACTION.items():
        signal, labels = _draw_phase(scene, grid, contraction, chest, texture)
        images[phase] = acquire(noise_rng, signal, scene.scanner, scene.pixel_mm)[::order].copy()
        masks[phase] = labels[::order].copy()
    return images, masks


def _draw_chest(scene: _Scene, axis_mm: FloatArray, texture: Texture) -> FloatArray:
    place = Place(
        x=axis_mm[None, None, :] - np.float32(scene.stack.centre_mm[0]),
        y=axis_mm[None, :, None] - np.float32(scene.stack.centre_mm[1]),
        z=scene.stack.z_mm[:, None, None],
    )
    return draw_thorax(scene.thorax, scene.tissues, place, texture)


def _draw_phase(
    scene: _Scene,
    grid: HeartGrid,
    contraction: float,
    chest: FloatArray,
    texture: Texture,
) -> tuple[FloatArray, LabelArray]:
    """Average thin sections over the chest, (S, H, W); labels are those of slice centres."""
    section = cross_sections(scene.heart, grid.z_mm, contraction)
    thin, covered, labels = draw_heart(scene.heart, section, scene.tissues, grid, texture)
    thin *= covered
    thin_slices = (-1, NUM_SUBSLICES, *thin.shape[1:])
    open_share = 1 - covered.reshape(thin_slices).mean(1, dtype=np.float32)
    signal: FloatArray = thin.reshape(thin_slices).mean(1) + chest * open_share
    return signal, labels[NUM_SUBSLICES // 2 :: NUM_SUBSLICES]


def patient_name(index: int) -> str:
    """Return the name of a patient in the style of ACDC, which counts from 1."""
    return f"patient{index + 1:03d}"


def group_of(index: int) -> str:
    """Return the ACDC group of a patient: all groups appear within any five patients."""
    return list(GROUPS)[index % len(GROUPS)]


def vendor_of(index: int) -> str:
    """Return the vendor of a patient; it changes every five, so each vendor sees every group."""
    return list(VENDORS)[index // len(GROUPS) % len(VENDORS)]
