"""Which scans a run uses, and their slices as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from spcl_fast.segmentation.data.errors import DataError
from spcl_fast.segmentation.data.find import DataSet, find_data
from spcl_fast.segmentation.data.grid import Grid
from spcl_fast.segmentation.data.layouts import LayoutName
from spcl_fast.segmentation.data.layouts.layout import Choice
from spcl_fast.segmentation.data.protocol import ProtocolSplit, load_protocol, split_by_protocol
from spcl_fast.segmentation.data.scan import Scan
from spcl_fast.segmentation.data.slices import Slices, load_slices
from spcl_fast.segmentation.data.split import patient_folds, split_patients
from spcl_fast.segmentation.phantom import PhantomConfig, write_phantom
from spcl_fast.segmentation.runs.progress import say

PROTOCOLS_OF = {"ssl4mis": "acdc", "mmwhs4": "mmwhs"}  # layouts that are another data set's


@dataclass(frozen=True)
class DataConfig:
    """Scans on disk and how they become slices.

    Attributes:
        root: Folder in one of the layouts; None means the phantom, which is written in `cache`.
        csv: Table with a column "scan" or "patient"; its other columns become meta-labels.
        cache: Folder for the resampled slices, and for the phantom.
        grid: Size and spacing that slices are resampled to.
        protocol: "random" draws test and validation patients; other names select a published
            split (spcl_fast/segmentation/data/protocols).
        num_test: Test patients of a random split.
        num_val: Validation patients of a random split, for the validation curve and for
            `select` "best" only.
        split_seed: Seed of the random split and of the folds.
        folds: Number of folds of a cross-validation. The patients outside the test set are divided
            into them, and the validation patients are those of `fold`, regardless of `num_val` and
            the protocol; 0 for none.
        fold: The fold for validation, from 0.
        layout: Layout of the folder; "auto" detects it.
        channel: Channel of images that have several (Decathlon, nnU-Net), from 0.
        unlabelled_folders: Take the images of folders without labels too, such as imagesTs; they
            are training scans.
    """

    root: Path | None = None
    csv: Path | None = None
    cache: Path = Path("runs/cache")
    grid: Grid = field(default_factory=Grid)
    protocol: Literal["random", "spcl", "ssl4mis", "chaitanya"] = "random"
    num_test: int = 8
    num_val: int = 2
    split_seed: int = 0
    folds: int = 0
    fold: int = 0
    layout: LayoutName = "auto"
    channel: int = 0
    unlabelled_folders: bool = False

    def __post_init__(self) -> None:
        """Check the folds."""
        if self.folds == 1 or self.folds < 0:
            raise ValueError(f"folds must be 0 or at least 2, got {self.folds}")
        if self.folds and not 0 <= self.fold < self.folds:
            raise ValueError(f"fold must be in 0..{self.folds - 1}, got {self.fold}")

    @property
    def choice(self) -> Choice:
        """What is read of a data set that holds more."""
        return Choice(self.channel, self.unlabelled_folders)


class Split(NamedTuple):
    """Scans of three disjoint sets of patients; those of the last two have masks."""

    train: list[Scan]
    val: list[Scan]
    test: list[Scan]


def data_set(config: DataConfig) -> DataSet:
    """Find the scans below the root and their classes, writing the phantom first without a root.

    Raises:
        DataError: The folder is not in the layout, or a file is missing.
    """
    if config.root is not None:
        return find_data(config.root, config.csv, config.layout, choice=config.choice)
    root = config.cache / "phantom"
    write_phantom(PhantomConfig(), root)
    return find_data(root, config.csv or root / "metadata.csv", "acdc")


def all_scans(config: DataConfig) -> list[Scan]:
    """Return every scan below the root; as `data_set`."""
    return data_set(config).scans


def split_scans(config: DataConfig) -> Split:
    """Return the training, validation and test scans; a patient is in one of them only.

    Raises:
        DataError: As `all_scans`.
        ValueError: There are not more patients than `num_test` and `num_val` or `folds` ask for.
    """
    if config.protocol != "random":
        known = protocol_split(config)
        train, val, test = known.train, known.val, known.test
    else:
        train, test = _divided(all_scans(config), config.num_test, config.split_seed)
        train, val = _divided(train, 0 if config.folds else config.num_val, config.split_seed)
    if config.folds:
        rest = [*train, *val]
        chosen = patient_folds(rest, folds=config.folds, seed=config.split_seed)[config.fold]
        train, val = _parted(rest, chosen)
    return Split(train, _labelled(val), _labelled(test))


def _divided(scans: list[Scan], count: int, seed: int) -> tuple[list[Scan], list[Scan]]:
    """Return the scans without those of `count` patients, and these."""
    if count == 0:
        return scans, []
    return _parted(scans, split_patients(scans, num_test=count, seed=seed)[1])


def _parted(scans: Sequence[Scan], chosen: Sequence[int]) -> tuple[list[Scan], list[Scan]]:
    """Return the scans that are not chosen, and those that are."""
    kept = set(range(len(scans))) - set(chosen)
    return [scans[i] for i in sorted(kept)], [scans[i] for i in chosen]


def _labelled(scans: Sequence[Scan]) -> list[Scan]:
    """Return the scans with masks; say which others are left out."""
    if without := [scan.name for scan in scans if scan.mask is None]:
        say(f"left out of test and validation, without a mask: {', '.join(without)}")
    return [scan for scan in scans if scan.mask is not None]


def protocol_split(config: DataConfig) -> ProtocolSplit:
    """Return the division of the protocol; say which of its cases are missing.

    Raises:
        DataError: As `all_scans`, or no training or no test case of the protocol is there.
        ValueError: There is no such protocol for the data set.
    """
    data = data_set(config)
    name = PROTOCOLS_OF.get(data.layout, data.layout)
    found = split_by_protocol(data.scans, load_protocol(config.protocol, name))
    if found.missing:
        listed = ", ".join(found.missing)
        say(f"protocol {config.protocol}: {len(found.missing)} cases are missing: {listed}")
    labelled = [scan for scan in found.test if scan.mask is not None]
    for name, scans in (("training", found.train), ("labelled test", labelled)):
        if not scans:
            raise DataError(f"{config.root} must hold {name} cases of {config.protocol}, got none")
    return found


def training_slices(config: DataConfig, scans: Sequence[Scan]) -> Slices:
    """Return the slices of `scans` on the grid of `config`."""
    return load_slices(scans, config.grid, config.cache)


def pick_labelled(
    scans: Sequence[Scan], *, names: Sequence[str], count: int, pick: int
) -> list[int]:
    """Return the indices of the scans to train on with their masks, among the training scans.

    Args:
        scans: The training scans.
        names: Names of the labelled scans; empty means to pick them.
        count: How many to pick. End-diastolic scans come first: one end-systolic scan has too
            little right ventricle to learn from.
        pick: Which pick, 0, 1, ...; picks are disjoint as long as there are scans.

    Raises:
        DataError: A name is not among the training scans or has no mask, or there are fewer scans
            with masks than asked for.
    """
    by_name = {scan.name: index for index, scan in enumerate(scans)}
    for name in names:
        if name not in by_name:
            some = ", ".join(list(by_name)[:3])
            raise DataError(f"labelled scan {name!r} is not among the training scans ({some}, ...)")
    if without := [name for name in names if scans[by_name[name]].mask is None]:
        raise DataError(f"labelled scans must have masks, got none of {', '.join(without)}")
    if names:
        return [by_name[name] for name in names]
    drawn = torch.randperm(len(scans), generator=torch.Generator().manual_seed(0)).tolist()
    order = [index for index in drawn if scans[index].mask is not None]
    order.sort(key=lambda index: scans[index].phase != "ED")
    if not 1 <= count <= len(order):
        kind = "training scans" if len(order) == len(scans) else "training scans with masks"
        raise DataError(f"num_labelled must be 1 to {len(order)} {kind}, got {count}")
    start = pick * count % len(order)
    return (order + order)[start : start + count]
