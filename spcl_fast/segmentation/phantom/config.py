"""What a phantom data set holds."""

from __future__ import annotations

from dataclasses import dataclass


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
