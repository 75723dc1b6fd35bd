"""From tissue signal to scanner image: coil, banding, blur, contrast curve and Rician noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from spcl_fast.segmentation.data.arrays import FloatArray


@dataclass(frozen=True)
class Vendor:
    """Image characteristics of one scanner vendor.

    Attributes:
        gamma: Exponent of the contrast curve.
        noise: Standard deviation of the complex noise; blood is about 0.8.
        bias: Strength of the receive coil's field, log units across the image.
        blur_mm: Standard deviation of the in-plane point spread.
        scale: Integer value of signal 1.
    """

    gamma: float
    noise: float
    bias: float
    blur_mm: float
    scale: float


VENDORS = {
    "A": Vendor(gamma=1.0, noise=0.018, bias=0.35, blur_mm=1.0, scale=350.0),
    "B": Vendor(gamma=0.8, noise=0.032, bias=0.55, blur_mm=1.5, scale=700.0),
    "C": Vendor(gamma=1.25, noise=0.026, bias=0.45, blur_mm=1.2, scale=1600.0),
}


@dataclass(frozen=True)
class Scanner:
    """A vendor's scanner as set up for one patient.

    Attributes:
        vendor: The vendor.
        field: Coefficients of 1, x, y, xy, x^2, y^2 in the log of the coil field.
        band: Angle in rad, offset in image halves, depth of a dark bSSFP band (0: none).
        gain: (S,) brightness of each slice.
    """

    vendor: Vendor
    field: FloatArray
    band: tuple[float, float, float]
    gain: FloatArray


def sample_scanner(rng: np.random.Generator, vendor: str, num_slices: int) -> Scanner:
    """Draw coil sensitivity, banding and slice brightness for one patient."""
    kind = VENDORS[vendor]
    spread = np.array([0.0, 0.45, 0.4, 0.4, 0.35, 0.35])
    field = kind.bias * rng.normal(0, 1, 6) * spread
    field[2] -= 0.4 * kind.bias  # the surface coil lies on the chest, at the top of the image
    banded = rng.random() < 0.3
    band = rng.uniform(0, np.pi), rng.uniform(0.3, 0.8), 0.5 * banded
    gain = rng.normal(1, 0.06, num_slices).astype(np.float32)
    return Scanner(kind, field.astype(np.float32), band, gain)


class Texture(NamedTuple):
    """Smooth noise of unit variance, the same for both phases of a patient, each (S, H, W).

    Attributes:
        fine: Varies over about 2 mm.
        coarse: Varies over about 6 mm.
    """

    fine: FloatArray
    coarse: FloatArray


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int, int], sigma: tuple[float, float]
) -> FloatArray:
    """Draw Gaussian noise, smooth over sigma = (slices, pixels), with unit variance, (S, H, W)."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    sigmas = (sigma[0], sigma[1], sigma[1])
    noise = gaussian_filter(noise, sigmas, mode="wrap", truncate=3.0)
    scaled: FloatArray = noise / (noise.std() + np.float32(1e-8))
    return scaled


def acquire(
    rng: np.random.Generator, signal: FloatArray, scanner: Scanner, pixel_mm: float
) -> FloatArray:
    """Turn tissue signal into a magnitude image.

    Args:
        rng: Source of the noise.
        signal: (S, H, W) float32, not negative.
        scanner: The set-up.
        pixel_mm: In-plane pixel size.

    Returns:
        (S, H, W) float32 holding whole numbers, as a scanner stores them.
    """
    vendor = scanner.vendor
    _, height, width = signal.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    terms = (0 * x * y + 1, x + 0 * y, y + 0 * x, x * y, x * x + 0 * y - 0.33, y * y + 0 * x - 0.33)
    field = np.exp(np.tensordot(scanner.field, np.stack(terms), 1))
    angle, offset, depth = scanner.band
    across = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) - np.float32(offset)
    field = field * (1 - depth * np.exp(-((across / 0.06) ** 2)))
    sigma = vendor.blur_mm / pixel_mm
    image = gaussian_filter(signal, (0, sigma, sigma), truncate=3.0)
    image *= field.astype(np.float32) * scanner.gain[:, None, None]
    image = np.clip(image, 0, None) ** np.float32(vendor.gamma)
    noise = vendor.noise * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    image = np.hypot(image + noise[0], noise[1]) * np.float32(vendor.scale)
    whole: FloatArray = np.rint(image).astype(np.float32)
    return whole
