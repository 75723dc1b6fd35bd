"""Stage 1: pre-train the network on meta-labels and on views of slices; masks are not used.

    L = encoder_weight sum_k lambda_k L_k + dense_weight L_dense

The encoder's stage has the first term only. The decoder's stage has the second only, on an encoder
that is given and stays as it is. With both, encoder and decoder are trained at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spcl_fast.segmentation.data.augment import AugmentConfig
from spcl_fast.segmentation.pretrain.contrast import LossConfig, plain_gamma
from spcl_fast.segmentation.pretrain.dense import DenseConfig
from spcl_fast.segmentation.pretrain.step import Pretraining
from spcl_fast.segmentation.runs.dataset import DataConfig, split_scans, training_slices
from spcl_fast.segmentation.runs.device import Device, Precision, set_up_device
from spcl_fast.segmentation.runs.network import ModelConfig
from spcl_fast.segmentation.runs.optim import OptimConfig, finite_loss
from spcl_fast.segmentation.runs.progress import progress_bar, say
from spcl_fast.segmentation.runs.run import Run

COLLAPSE_TOLERANCE = 0.01  # of log(N - 1): closer than this, the loss does not tell rows apart
COLLAPSE_COSINE = 0.95  # mean cosine between rows above which the embedding counts as collapsed
EPOCH_MEANS = ("loss", "mean_weight", "collapse")


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train the encoder, the decoder or both with the self-paced contrastive loss.

    Attributes:
        out: Run folder.
        init: Run folder or encoder.safetensors of an encoder to start from.
        data: Scans and grid.
        model: Network.
        encoder_weight: Weight of the loss over meta-labels on the encoder's last map; 0 leaves the
            encoder as it is, which then needs `init`.
        dense_weight: Weight of the loss over cells of a decoder map; 0 leaves the decoder out.
        loss: Contrastive loss, its meta-labels and pace.
        dense: Contrastive loss over cells.
        label_noise: Share of the slices that get a wrong meta-label, for a noise audit; how well
            the pair weights find them is logged.
        noise_known: The wrong labels are known and left out: the ceiling of what a pace can gain.
        optim: Optimiser.
        augment: Augmentation of each of the two views.
        num_scans: Scans a batch (S).
        slices_per_partition: Slices of each partition of a scan in a batch (R); with P partitions
            a batch has N = 2 S P R rows.
        epochs: Epochs; after each the health figures are taken and the state is saved.
        steps_per_epoch: Batches an epoch.
        log_every: Steps between lines of the log.
        seed: Seed of the weights, the batches and the augmentation.
        device: "auto" takes CUDA where there is one.
        threads: CPU threads; 0 leaves torch's choice.
        precision: Of the network in training; "auto" is bfloat16 on CUDA and float32 on a CPU.
        deterministic: Ask torch for deterministic algorithms.
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
        if self.label_noise and (self.loss.position_window or self.loss.position_kernel):
            raise ValueError("label_noise must be 0 with position_window or position_kernel")
        if self.noise_known and not self.label_noise:
            raise ValueError("noise_known needs label_noise above 0, got 0")


def pretrain(config: PretrainConfig, *, resume: bool = False) -> Path:
    """Pre-train; return the path of the encoder's weights, encoder.safetensors.

    Where the decoder is trained, decoder.safetensors lies beside it. On the CPU, a run that was
    killed and resumed ends with bitwise the weights of one that was not (same number of threads).

    Raises:
        DataError, ConfigError, CheckpointError, ValueError: One sentence for the user.
    """
    device = set_up_device(config.device, config.threads, deterministic=config.deterministic)
    slices = training_slices(config.data, split_scans(config.data).train).to(device)
    training = Pretraining(config, slices, device)
    steps = config.epochs * config.steps_per_epoch

    run = Run.start(config.out, config, "pretrain", resume=resume)
    if resume and (state := run.load_state()):
        training.load(state)
    with progress_bar(f"pretrain {run.name}", steps, training.step) as show:
        while training.step < steps:
            epoch, began = training.step // config.steps_per_epoch, time.perf_counter()
            sums = torch.zeros(3, device=device)
            for _ in range(config.steps_per_epoch):
                out = training.train_step()
                step, stats = training.step, out.stats
                sums += torch.stack([out.loss, stats["mean_weight"], stats["collapse"]])
                if step % config.log_every == 0:  # the only device-to-host copy in the loop
                    values = {name: float(value) for name, value in stats.items()}
                    values["loss"] = finite_loss(out.loss, step)
                    gamma, rows = plain_gamma(out.gamma), training.num_rows
                    line = {"gamma": gamma, "num_rows": rows, "lr": training.lr, **values}
                    run.log("step", step, epoch=epoch, **line)
                    show(step, f"loss {values['loss']:.3f} w {values['mean_weight']:.2f}")
            finite_loss(sums[0], training.step)  # before the state is saved
            means = (sums / config.steps_per_epoch).tolist()
            health = dict(zip(EPOCH_MEANS, means, strict=True)) | training.health(run, epoch)
            seconds = time.perf_counter() - began
            run.log("epoch", training.step, epoch=epoch, seconds=seconds, **health)
            report_health(epoch, health, seconds)
            run.save_state(training.step, **training.state())
    path = training.save(run)
    run.close()
    return path


def report_health(epoch: int, health: dict[str, float], seconds: float) -> None:
    """Print the figures of an epoch, and warn of a loss that learns nothing."""
    knn, loss = health["knn_position_accuracy"], health["loss"]
    say(
        f"epoch {epoch}: loss {loss:.4f}, mean weight {health['mean_weight']:.3f}, "
        f"kNN slice position {knn:.3f}, {seconds:.1f} s"
    )
    if health["mean_weight"] == 0:
        say("warning: every pair weight was 0 in this epoch: start the pace higher")
    plateau = health["collapse_loss"]
    is_plain = health["mean_weight"] > 1 - COLLAPSE_TOLERANCE
    if is_plain and abs(loss - plateau) < COLLAPSE_TOLERANCE * plateau:
        say(f"warning: the loss sits at log(N - 1) = {plateau:.3f}: it tells no rows apart")
    if health["collapse"] > COLLAPSE_COSINE:
        say(f"warning: the embedding is collapsed: mean cosine {health['collapse']:.3f}")
