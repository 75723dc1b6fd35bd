"""Stage 1: pre-train the encoder on meta-labels; the masks are not used."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from spcl_fast.data.augment import AugmentConfig, augment
from spcl_fast.data.sampler import GroupSampler
from spcl_fast.models import UNet
from spcl_fast.train.contrast import (
    LossConfig,
    contrastive_step,
    label_columns,
    make_heads,
    plain_gamma,
)
from spcl_fast.train.dataset import DataConfig, split_scans, training_slices
from spcl_fast.train.device import Device, set_up_device
from spcl_fast.train.health import (
    feature_maps,
    knn_position_accuracy,
    pooled,
    save_embedding,
    save_pair_weights,
)
from spcl_fast.train.network import ModelConfig, encoder_metadata
from spcl_fast.train.optim import OptimConfig, finite_loss, make_optimizer, set_lr, warmup_cosine
from spcl_fast.train.progress import progress_bar, say
from spcl_fast.train.run import Run, save_weights

COLLAPSE_TOLERANCE = 0.01  # of log(N - 1): closer than this, the loss does not tell rows apart
COLLAPSE_COSINE = 0.95  # mean cosine between rows above which the embedding counts as collapsed
EPOCH_MEANS = ("loss", "mean_weight", "collapse")
WEIGHT_SNAPSHOTS = 4


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-train the encoder with the self-paced contrastive loss.

    Attributes:
        out: Run folder.
        data: Scans and grid.
        model: Network.
        loss: Contrastive loss, its meta-labels and pace.
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
        deterministic: Ask torch for deterministic algorithms.
    """

    out: Path = Path("runs/pretrain")
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
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
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("num_scans", "slices_per_partition", "epochs", "steps_per_epoch", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")


def pretrain(config: PretrainConfig, *, resume: bool = False) -> Path:
    """Pre-train the encoder; return the path of its weights, encoder.safetensors.

    On the CPU, a run that was killed and resumed ends with bitwise the weights of one that was not
    (same number of threads).

    Raises:
        DataError, ConfigError, CheckpointError, ValueError: One sentence for the user.
    """
    device = set_up_device(config.device, config.threads, deterministic=config.deterministic)
    slices = training_slices(config.data, split_scans(config.data).train).to(device)
    columns = label_columns(slices, config.loss)

    torch.manual_seed(config.seed)
    encoder = UNet(1, config.model.num_classes, config.model.max_channels).encoder.to(device)
    heads = make_heads(encoder.channels[-1], config.loss).to(device)
    model = nn.ModuleDict({"encoder": encoder, "heads": heads})
    optimizer = make_optimizer(model.parameters(), config.optim)
    generator = torch.Generator().manual_seed(config.seed)
    sample = GroupSampler(
        slices.scan,
        slices.slice_index,
        slices.num_slices,
        num_scans=config.num_scans,
        num_partitions=config.loss.num_partitions,
        slices_per_partition=config.slices_per_partition,
        generator=generator,
    )
    step, steps = 0, config.epochs * config.steps_per_epoch

    run = Run.start(config.out, config, "pretrain", resume=resume)
    if resume and (state := run.load_state()):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step = state["step"]
    snapshots = [
        round(i * config.epochs / WEIGHT_SNAPSHOTS) for i in range(1, WEIGHT_SNAPSHOTS + 1)
    ]

    with progress_bar(f"pretrain {run.name}", steps, step) as show:
        while step < steps:
            epoch, began = step // config.steps_per_epoch, time.perf_counter()
            sums = torch.zeros(3, device=device)
            for _ in range(config.steps_per_epoch):
                set_lr(optimizer, warmup_cosine(step, steps, config.optim))
                index = sample()
                index = torch.cat([index, index]).to(device)
                views, _ = augment(slices.images[index], None, config.augment, generator)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    features = encoder(views)[-1]
                labels = {name: column[index] for name, column in columns.items()}
                out = contrastive_step(features, labels, heads, step / steps, config.loss)

                optimizer.zero_grad(set_to_none=True)
                out.loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

                step += 1
                stats = out.stats
                sums += torch.stack([out.loss.detach(), stats["mean_weight"], stats["collapse"]])
                if step % config.log_every == 0:  # the only device-to-host copy in the loop
                    values = {name: float(value) for name, value in stats.items()}
                    values["loss"] = finite_loss(out.loss, step)
                    values["lr"] = optimizer.param_groups[0]["lr"]
                    gamma = plain_gamma(out.gamma)
                    run.log("step", step, epoch=epoch, gamma=gamma, num_rows=len(index), **values)
                    show(step, f"loss {values['loss']:.3f} w {values['mean_weight']:.2f}")

            finite_loss(sums[0], step)  # before the state is saved
            maps = feature_maps(encoder, slices.images)
            health = {
                **dict(zip(EPOCH_MEANS, (sums / config.steps_per_epoch).tolist(), strict=True)),
                "collapse_loss": collapse_loss(len(index), config.loss),
                "knn_position_accuracy": knn_position_accuracy(pooled(maps), slices),
            }
            seconds = time.perf_counter() - began
            run.log("epoch", step, epoch=epoch, seconds=seconds, **health)
            report_health(epoch, health, seconds)
            if epoch + 1 in snapshots:
                first = config.loss.labels[0]
                head = heads[first if config.loss.own_projector else "shared"]
                save_pair_weights(
                    run,
                    step,
                    step / steps,
                    maps,
                    slices,
                    columns[first],
                    head,
                    config.loss,
                    len(index),
                )
            run.save_state(
                step,
                model=model.state_dict(),
                optimizer=optimizer.state_dict(),
                generator=generator.get_state(),
            )
    save_embedding(run, pooled(feature_maps(encoder, slices.images)), slices)
    path = run.folder / "encoder.safetensors"
    save_weights(path, encoder.state_dict(), encoder_metadata(config.model))
    run.close()
    return path


def collapse_loss(num_rows: int, config: LossConfig) -> float:
    """Return the loss of a collapsed embedding without pace: log(N - 1) times sum of lambda."""
    return math.log(num_rows - 1) * sum(config.of_label(n, config.weights) for n in config.labels)


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
