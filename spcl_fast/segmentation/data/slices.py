"""The slices of several scans as tensors, resampled once and cached on disk.

The cache has one ``.npz`` file per scan, named by a hash of the path, size and modification time of
its files, the way they are read and the grid: a changed file, another frame, axis, set of classes
or grid gives another entry. An entry that cannot be read is rebuilt.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.data.arrays import FloatArray, LabelArray
from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.grid import Grid, image_to_grid, to_grid
from spcl_fast.segmentation.data.image_file import files_of
from spcl_fast.segmentation.data.scan import IGNORED, PHASES, Scan
from spcl_fast.segmentation.data.volume import read_scan

CACHE_FORMAT = 3  # part of every cache key: raise it when the processing changes


@dataclass(frozen=True)
class Slices:
    """The n slices of several scans.

    Attributes:
        scans: The scans, in the order of ``scan``.
        images: (n, 1, size, size) float32 in [0, 1].
        masks: (n, size, size) uint8, ``IGNORED`` in scans without a mask.
        scan: (n,) int64, index into scans.
        slice_index: (n,) int64, place in the stack of the scan.
        num_slices: (n,) int64, slices in the stack of the scan.
        meta: (n,) int64 category of each meta-label, -1 where unknown: ``patient``, ``phase`` and
            every name in ``Scan.meta`` and ``Scan.slice_meta``.
        categories: Names of the categories of each meta-label, sorted.
    """

    scans: tuple[Scan, ...]
    images: Tensor
    masks: Tensor
    scan: Tensor
    slice_index: Tensor
    num_slices: Tensor
    meta: dict[str, Tensor]
    categories: dict[str, list[str]]

    def __len__(self) -> int:
        return int(self.scan.shape[0])

    @property
    def position(self) -> Tensor:
        """Centre of each slice along its stack, (n,) float32 in (0, 1)."""
        return (self.slice_index + 0.5) / self.num_slices

    def scans_without_foreground(self) -> list[Scan]:
        """Return the scans with masks that hold background only, on the grid."""
        foreground = (self.masks != 0) & (self.masks != IGNORED)
        found = set(self.scan[foreground.flatten(1).any(1)].tolist())
        rest = [scan for index, scan in enumerate(self.scans) if index not in found]
        return [scan for scan in rest if scan.mask is not None]

    def to(self, device: torch.device | str) -> Slices:
        """Move every tensor to a device."""
        return replace(
            self,
            images=self.images.to(device),
            masks=self.masks.to(device),
            scan=self.scan.to(device),
            slice_index=self.slice_index.to(device),
            num_slices=self.num_slices.to(device),
            meta={name: codes.to(device) for name, codes in self.meta.items()},
        )

    def select(self, scan_indices: Sequence[int]) -> Slices:
        """Keep the slices of some scans, renumbered 0, 1, ... in the order given; categories stay.

        Args:
            scan_indices: Indices into ``scans``, each at most once.

        Raises:
            ValueError: An index repeats or is out of range.
        """
        wanted = list(scan_indices)
        if len(set(wanted)) != len(wanted) or not all(0 <= i < len(self.scans) for i in wanted):
            raise ValueError(
                f"scan_indices must be distinct numbers in 0..{len(self.scans) - 1}, got {wanted}"
            )
        rows = [torch.nonzero(self.scan == i).flatten() for i in wanted]
        keep = torch.cat(rows) if rows else self.scan.new_zeros(0)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return replace(
            self,
            scans=tuple(self.scans[i] for i in wanted),
            images=self.images[keep],
            masks=self.masks[keep],
            scan=torch.arange(len(wanted)).repeat_interleave(lengths).to(self.scan.device),
            slice_index=self.slice_index[keep],
            num_slices=self.num_slices[keep],
            meta={name: codes[keep] for name, codes in self.meta.items()},
        )


def load_slices(scans: Sequence[Scan], grid: Grid, cache_dir: Path | None = None) -> Slices:
    """Read scans, normalise each volume to [0, 1] and resample it to the grid.

    Args:
        scans: The scans to load, at least one, with distinct names.
        grid: Target grid.
        cache_dir: Folder of the cache, created on demand; None reads and writes no cache.

    Raises:
        DataError: A scan cannot be read or the cache cannot be written.
        ValueError: `scans` is empty or a name repeats.
    """
    names = [scan.name for scan in scans]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or repeated:
        shown = f"{', '.join(repeated)} more than once" if repeated else "none"
        raise ValueError(f"scans must be one or more scans with distinct names, got {shown}")
    images, masks, lengths = [], [], []
    for scan in scans:
        image, mask = _processed(scan, grid, cache_dir)
        images.append(torch.from_numpy(image))
        masks.append(torch.from_numpy(mask))
        lengths.append(len(image))
    counts = torch.tensor(lengths, dtype=torch.int64)
    columns, categories = _encode(scans, lengths)
    return Slices(
        scans=tuple(scans),
        images=torch.cat(images).unsqueeze(1),
        masks=torch.cat(masks),
        scan=torch.arange(len(lengths)).repeat_interleave(counts),
        slice_index=torch.cat([torch.arange(length) for length in lengths]),
        num_slices=counts.repeat_interleave(counts),
        meta=columns,
        categories=categories,
    )


def _encode(
    scans: Sequence[Scan], lengths: Sequence[int]
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Return codes, (n,) int64 over all slices, and sorted categories of every meta-label."""
    names = sorted({name for scan in scans for name in (*scan.meta, *scan.slice_meta)})
    values = {name: _of_slices(scans, lengths, name) for name in names}
    for name in ("patient", "phase"):
        values[name] = [
            getattr(scan, name)
            for scan, length in zip(scans, lengths, strict=True)
            for _ in range(length)
        ]
    categories = {name: sorted({v for v in column if v}) for name, column in values.items()}
    categories["phase"] = list(PHASES)
    numbers = {n: {v: code for code, v in enumerate(known)} for n, known in categories.items()}
    codes = {
        name: torch.tensor([numbers[name][v] if v else -1 for v in column])
        for name, column in values.items()
    }
    return codes, categories


def _of_slices(scans: Sequence[Scan], lengths: Sequence[int], name: str) -> list[str | None]:
    """Return a meta-label of every slice: its own, else that of its scan.

    Raises:
        DataError: It is given for a slice that the stack does not have.
    """
    values: list[str | None] = []
    for scan, length in zip(scans, lengths, strict=True):
        own = scan.slice_meta.get(name, {})
        if own and max(own) >= length:
            raise DataError(
                f"slices of {scan.name} must be numbered 0 to {length - 1}, got {name} of slice "
                f"{max(own)}."
            )
        values += [own.get(k, scan.meta.get(name)) for k in range(length)]
    return values


def _processed(scan: Scan, grid: Grid, cache_dir: Path | None) -> tuple[FloatArray, LabelArray]:
    """Return image (S, size, size) float32 and mask (S, size, size) uint8, cached if possible."""
    entry = None if cache_dir is None else _cache_entry(scan, grid, Path(cache_dir))
    if entry is not None and (cached := _read_entry(entry, grid)) is not None:
        return cached
    volume = read_scan(scan)
    image = image_to_grid(torch.from_numpy(volume.image), volume.spacing_mm, grid)
    mask = to_grid(torch.from_numpy(volume.mask), volume.spacing_mm, grid, labels=True)
    if scan.mask is None:
        mask.fill_(IGNORED)  # beyond the volume too
    arrays = image.numpy(), mask.numpy()
    if entry is not None:
        _write_entry(entry, *arrays)
    return arrays


def _cache_entry(scan: Scan, grid: Grid, cache_dir: Path) -> Path:
    classes = None if scan.classes is None else sorted(scan.classes.items())
    reading = (scan.frame, scan.stack_axis, classes, len(scan.class_names))
    identity: list[object] = [CACHE_FORMAT, grid.size, grid.spacing_mm, reading]
    masks = [] if scan.mask is None else files_of(scan.mask)
    for path in (*files_of(scan.image), *masks):
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path} must be a readable file, got {error}.") from error
        identity += [str(path.resolve()), status.st_size, status.st_mtime_ns]
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:20]
    return cache_dir / f"{scan.name}_{digest}.npz"


def _read_entry(entry: Path, grid: Grid) -> tuple[FloatArray, LabelArray] | None:
    try:
        with np.load(entry, allow_pickle=False) as arrays:
            image, mask = arrays["image"], arrays["mask"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    plane = (grid.size, grid.size)
    valid = image.dtype == np.float32 and mask.dtype == np.uint8 and image.shape == mask.shape
    return (image, mask) if valid and image.ndim == 3 and image.shape[1:] == plane else None


def _write_entry(entry: Path, image: FloatArray, mask: LabelArray) -> None:
    try:
        with atomic_file(entry) as partial, open(partial, "wb") as file:
            np.savez(file, image=image, mask=mask)
    except OSError as error:
        raise DataError(
            f"{entry.parent} must be a writable cache folder: {error.strerror}"
        ) from error
