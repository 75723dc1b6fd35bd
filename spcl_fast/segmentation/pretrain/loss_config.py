"""Configuration of the losses of a pre-training, and of their pace."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Literal

from spcl_fast.ops import Impl

DECODER_MAPS = ("up_conv5", "up_conv4", "up_conv3", "up_conv2")  # deep to shallow
CELL = "cell"
BUILT_IN = ("position", "patient", "phase", "self")  # labels that no column gives


def _by_column(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """Return the values of an option that has one for each column: NAME=VALUE."""
    found = dict(value.partition("=")[::2] for value in values)
    if len(found) != len(values) or not all(map(all, found.items())):
        raise ValueError(f"{option} must be NAME=VALUE, each name once, got {' '.join(values)}")
    return found


@dataclass(frozen=True)
class LossConfig:
    """The self-paced contrastive loss over meta-labels (arXiv:2107.13741, equations 2 to 4).

    A tuple of length one applies to every label.

    Attributes:
        labels: Meta-labels: "position", "patient", "phase", a column of the CSV, or "self", every
            slice its own class (SimCLR).
        weights: lambda of each label.
        num_partitions: Partitions of the slice position.
        position_window: Positives of "position" are the slices whose positions in (0, 1) differ by
            at most this, instead of those of the same partition, as in PCL (arXiv:2106.09157); 0
            means partitions.
        position_kernel: Every slice is a positive of "position", weighted by a Gaussian of this
            width in the difference of positions, as in the y-aware loss (arXiv:2106.08808); 0
            means partitions. Needs pace "none".
        bins: Columns of numbers in bins: "age=5" for 5 with as many slices each, "age=40,60" for
            new bins from 40 and 60 on ("age=65," for two), "age=each" for a bin of every number.
        windows: Columns of numbers of which slices are positives that differ by at most a width:
            "age=10".
        tau: Temperature.
        pace: What goes from `start` to `end`: "absolute" gamma, as in the paper; "relative"
            gamma / log(N - 1); "quantile" the share of positive pairs with l < gamma. "none" is
            gamma = inf, plain SupCon.
        start: Pace at the first step, for each label.
        end: Pace at the last step, for each label.
        power: The pace changes with (step / steps) ** power.
        mode: Pair weights: "linear" or "hard".
        correct_grad: Divide the loss by the mean weight.
        own_projector: One projection head per label, as in the paper; else one for all labels.
        projector_batch_norm: BatchNorm on the hidden layer of the head; with it small batches leave
            the plateau at log(N - 1) sooner.
        impl: Implementation of the loss.
    """

    labels: tuple[str, ...] = ("position",)
    weights: tuple[float, ...] = (1.0,)
    num_partitions: int = 3
    position_window: float = 0.0
    position_kernel: float = 0.0
    bins: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    tau: float = 0.07
    pace: Literal["none", "absolute", "relative", "quantile"] = "relative"
    start: tuple[float, ...] = (1.2,)
    end: tuple[float, ...] = (15.0,)
    power: float = 0.5
    mode: Literal["linear", "hard"] = "linear"
    correct_grad: bool = False
    own_projector: bool = True
    projector_batch_norm: bool = False
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        """Check that the tuples fit together."""
        for name in ("weights", "start", "end"):
            length = len(getattr(self, name))
            if length not in (1, len(self.labels)):
                raise ValueError(f"{name} must have 1 or {len(self.labels)} values, got {length}")
        self._check_numbers()
        if len(set(self.labels)) != len(self.labels) or not self.labels:
            raise ValueError(f"labels must be different names, at least one, got {self.labels}")
        if self.position_kernel and self.pace != "none":
            raise ValueError(f"pace must be none with position_kernel, got {self.pace}")
        if self.position_kernel and self.position_window:
            raise ValueError(
                f"position_window must be 0 with position_kernel, got {self.position_window}"
            )
        if self.position_kernel and len(self.labels) > 1 and not self.own_projector:
            raise ValueError("own_projector must be true with position_kernel and several labels")
        bins, windows = self.bins_of_columns, self.windows_of_columns
        for name in (*bins, *windows):
            if name not in self.labels or name in BUILT_IN or (name in bins and name in windows):
                raise ValueError(
                    f"bins or windows must be of a column in labels ({', '.join(self.labels)}), "
                    f"one of both, got {name}"
                )

    def _check_numbers(self) -> None:
        for name in ("tau", "power", "start", "end"):
            value = getattr(self, name)
            if not all(x > 0 for x in (value if isinstance(value, tuple) else (value,))):
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("position_window", "position_kernel"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if self.num_partitions < 1:
            raise ValueError(f"num_partitions must be at least 1, got {self.num_partitions}")

    @property
    def bins_of_columns(self) -> dict[str, str]:
        """Return the bins of columns, by name."""
        return _by_column("bins", self.bins)

    @property
    def windows_of_columns(self) -> dict[str, float]:
        """Return the windows of columns, by name."""
        widths: dict[str, float] = {}
        for name, width in _by_column("windows", self.windows).items():
            with contextlib.suppress(ValueError):
                widths[name] = float(width)
            if not 0 <= widths.get(name, -1) < math.inf:
                raise ValueError(f"windows must be numbers of at least 0, got {name}={width}")
        return widths

    @property
    def has_windows(self) -> bool:
        """Whether positives are chosen by a distance, so that labels have no categories."""
        return bool(self.position_window or self.position_kernel or self.windows)

    def window_of(self, name: str) -> float | None:
        """Return the window of the label `name`, None for equality."""
        if name == "position" and self.position_window:
            return self.position_window
        return self.windows_of_columns.get(name)

    def head_of(self, name: str) -> str:
        """Return the name of the projection head of the label `name`."""
        return name if self.own_projector else "shared"

    def of_label(self, name: str, values: tuple[float, ...]) -> float:
        """Return the value of the label `name` among `values`."""
        return values[0] if len(values) == 1 else values[self.labels.index(name)]


@dataclass(frozen=True)
class DenseConfig:
    """The dense contrastive loss on a map of the decoder.

    Attributes:
        map: The decoder's map.
        size: Cells along a side of the grid.
        cells: Cells drawn from each image, at most `size`.
        tau: Temperature.
        pace: As in the loss over meta-labels.
        start: Pace at the first step.
        end: Pace at the last step.
        power: The pace changes with (step / steps) ** power.
        mode: Pair weights: "linear" or "hard".
        impl: Implementation of the loss.
    """

    map: Literal["up_conv5", "up_conv4", "up_conv3", "up_conv2"] = "up_conv3"
    size: int = 10
    cells: int = 5
    tau: float = 0.07
    pace: Literal["none", "absolute", "relative", "quantile"] = "none"
    start: float = 1.2
    end: float = 15.0
    power: float = 0.5
    mode: Literal["linear", "hard"] = "linear"
    impl: Impl = "auto"

    def __post_init__(self) -> None:
        """Check the grid."""
        if not 1 <= self.cells <= self.size:
            raise ValueError(f"cells must be in 1..{self.size} (size), got {self.cells}")

    @property
    def num_blocks(self) -> int:
        """Blocks of the decoder that the map needs."""
        return DECODER_MAPS.index(self.map) + 1

    @property
    def loss(self) -> LossConfig:
        """The loss over the only label, the cell."""
        return LossConfig(
            labels=(CELL,),
            tau=self.tau,
            pace=self.pace,
            start=(self.start,),
            end=(self.end,),
            power=self.power,
            mode=self.mode,
            impl=self.impl,
        )
