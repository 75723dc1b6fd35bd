"""Configuration of a pre-training: its losses, their pace, and the training around them."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from spcl_fast.ops import Impl
from spcl_fast.segmentation.data.augment import AugmentConfig
from spcl_fast.segmentation.networks.encoders import UNET
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.device import Device, Precision
from spcl_fast.segmentation.runs.network import ModelConfig
from spcl_fast.segmentation.runs.optim import OptimConfig

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


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train the encoder, the decoder or both with the self-paced contrastive loss.

    Attributes:
        out: Run folder.
        init: Run folder or encoder.safetensors of an encoder to start from.
        data: Scans and grid.
        model: Network.
        encoder_weight: Weight of the loss over meta-labels on the encoder's last map; 0 freezes the
            encoder and needs `init`.
        dense_weight: Weight of the loss over cells of a decoder map; 0 trains no decoder.
        loss: Contrastive loss, its meta-labels and pace.
        dense: Contrastive loss over cells.
        label_noise: Share of the slices that get a wrong meta-label, for a noise audit; how well
            the pair weights find them is logged.
        noise_known: The wrong labels are known and left out: an upper bound for every pace.
        optim: Optimiser.
        augment: Augmentation of each of the two views.
        num_scans: Scans per batch (S).
        slices_per_partition: Slices of each partition of a scan in a batch (R); with P partitions
            a batch has N = 2 S P R rows.
        epochs: Epochs; after each the health figures are computed and the state is saved.
        steps_per_epoch: Batches per epoch.
        log_every: Steps between lines of the log.
        seed: Seed of the weights, the batches and the augmentation.
        device: "auto" uses CUDA if available.
        threads: CPU threads; 0 keeps torch's choice.
        precision: Of the network in training; "auto" is bfloat16 on CUDA and float32 on a CPU.
        deterministic: Ask torch for deterministic algorithms.
        compile: Compile the network and the loss (torch.compile): the first step takes a minute or
            more, those after it less.
        sync_batch_norm: On several ranks, normalise over the rows of all of them; else over those
            of each rank, of which the first enters the running statistics.
        cached_chunk: Views of a chunk, for batches whose activations do not fit: the network runs
            chunk by chunk, twice (`spcl_fast.cached_step`), the loss over the whole batch. Needs
            `model.norm` "group"; 0 runs the batch at once.
    """

    out: Path = Path("runs/pretrain")
    init: Path | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    encoder_weight: float = 1.0
    dense_weight: float = 0.0
    loss: LossConfig = field(default_factory=LossConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    label_noise: float = 0.0
    noise_known: bool = False
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    num_scans: int = 10
    slices_per_partition: int = 1
    epochs: int = 80
    steps_per_epoch: int = 200
    log_every: int = 10
    seed: int = 0
    device: Device = "auto"
    threads: int = 0
    precision: Precision = "auto"
    deterministic: bool = False
    compile: bool = False
    sync_batch_norm: bool = True
    cached_chunk: int = 0

    def __post_init__(self) -> None:
        """Check the counts and weights."""
        for name in ("num_scans", "slices_per_partition", "epochs", "steps_per_epoch", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("encoder_weight", "dense_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.encoder_weight == 0 and (self.dense_weight == 0 or self.init is None):
            raise ValueError("init and dense_weight must be given where encoder_weight is 0")
        if not 0 <= self.label_noise <= 1:
            raise ValueError(f"label_noise must be in [0, 1], got {self.label_noise}")
        if self.label_noise and self.loss.has_windows:
            raise ValueError(
                "label_noise must be 0 with position_window, position_kernel or windows"
            )
        if self.cached_chunk < 0:
            raise ValueError(f"cached_chunk must not be negative, got {self.cached_chunk}")
        if self.model.encoder != UNET and self.dense_weight:
            raise ValueError(
                f"dense_weight must be 0 with another encoder, got {self.dense_weight}"
            )
        if self.cached_chunk and self.model.encoder == UNET and self.model.norm == "batch":
            raise ValueError("model.norm must be group with cached_chunk, got batch")
        if self.noise_known and not self.label_noise:
            raise ValueError("noise_known needs label_noise above 0, got 0")
