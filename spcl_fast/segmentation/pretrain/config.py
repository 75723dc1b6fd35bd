"""Configuration of a pre-training: its data, network and losses, and the training around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from spcl_fast.segmentation.data.augment import AugmentConfig
from spcl_fast.segmentation.networks.encoders import UNET
from spcl_fast.segmentation.pretrain.loss_config import DenseConfig, LossConfig
from spcl_fast.segmentation.runs.dataset import DataConfig
from spcl_fast.segmentation.runs.device import Device, Precision
from spcl_fast.segmentation.runs.network import ModelConfig
from spcl_fast.segmentation.runs.optim import OptimConfig


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
