"""One step of the pre-training, and the networks, heads and optimiser that it changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spcl_fast.cached_step import cached_step
from spcl_fast.devices import sent_to
from spcl_fast.segmentation.data.sampler import GroupSampler
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.networks import UNetDecoder
from spcl_fast.segmentation.networks.encoders import UNET, make_encoder, num_features
from spcl_fast.segmentation.pretrain.config import PretrainConfig
from spcl_fast.segmentation.pretrain.contrast import (
    ContrastStep,
    label_columns,
    make_heads,
)
from spcl_fast.segmentation.pretrain.dense import make_dense_head
from spcl_fast.segmentation.pretrain.health import (
    feature_maps,
    knn_position_accuracy,
    pooled,
    save_embedding,
    save_pair_weights,
)
from spcl_fast.segmentation.pretrain.label_noise import flip_labels, known_labels, wrong_pairs
from spcl_fast.segmentation.pretrain.loss_config import LossConfig
from spcl_fast.segmentation.pretrain.moment import Moment
from spcl_fast.segmentation.pretrain.parts import PretrainLosses, PretrainNetwork, StepBatch
from spcl_fast.segmentation.pretrain.views import AlignedViews, aligned_views, independent_views
from spcl_fast.segmentation.runs.network import (
    decoder_blocks,
    decoder_metadata,
    encoder_metadata,
    fill_encoder,
    make_network,
)
from spcl_fast.segmentation.runs.optim import make_optimizer, set_lr, warmup_cosine
from spcl_fast.segmentation.runs.pretrained_on import pretrained_on
from spcl_fast.segmentation.runs.ranks import Ranks
from spcl_fast.segmentation.runs.run import Run, save_weights
from spcl_fast.segmentation.runs.sync_batch_norm import synchronised

WEIGHT_SNAPSHOTS = 4  # the first before the first step
AUDIT_BATCHES = 16
ENCODER_FILE = "encoder.safetensors"


class PretrainTrainer:
    """The state that a step of the pre-training changes."""

    def __init__(self, config: PretrainConfig, slices: Slices, device: torch.device) -> None:
        self.config, self.slices = config, slices
        self.clean = label_columns(slices, config.loss)
        self.noisy = self.columns = self.clean
        if config.label_noise:
            self.noisy = self.columns = flip_labels(self.clean, config.label_noise, config.seed)
        if config.noise_known:
            self.columns = known_labels(self.clean, self.noisy)
        torch.manual_seed(config.seed)
        channels = self._make_network(device)
        if config.init is not None:
            fill_encoder(self.encoder, config.init, config.model)
        self.heads = make_heads(channels[-1], config.loss).to(device)
        parts: dict[str, nn.Module] = {"encoder": self.encoder, "heads": self.heads}
        if self.decoder is not None and config.dense_weight:
            self.dense_head = make_dense_head(channels, config.dense).to(device)
            self.decoder_part = decoder_blocks(self.decoder, config.dense.num_blocks)
            parts |= {"decoder": self.decoder_part, "dense_head": self.dense_head}
        self.model = nn.ModuleDict(parts)
        self.ranks = Ranks.current()
        if config.sync_batch_norm:
            synchronised(self.model, self.ranks, device)
        if config.encoder_weight == 0:
            self.encoder.requires_grad_(False).eval()
        self.optimizer = make_optimizer(
            [p for p in self.model.parameters() if p.requires_grad], config.optim
        )
        self.generator = torch.Generator().manual_seed(config.seed)
        self.sample = self._sampler(self.generator)
        self.step = 0
        groups = config.num_scans * config.loss.num_partitions
        self.num_rows = 2 * groups * config.slices_per_partition
        self._make_parallel()

    def _make_network(self, device: torch.device) -> tuple[int, ...]:
        """Make the encoder, and its decoder if there is one; return the channels of its maps."""
        model = self.config.model
        self.encoder: nn.Module
        self.decoder: UNetDecoder | None = None
        if model.encoder == UNET:
            network = make_network(model)
            network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.encoder, self.decoder = network.encoder, network.decoder
            return network.encoder.channels
        self.encoder = make_encoder(model.encoder)
        channels = (num_features(self.encoder, self.config.data.grid.size),)
        self.encoder.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return channels

    def _make_parallel(self) -> None:
        config = self.config
        network = PretrainNetwork(self.encoder, self.decoder, config)
        dense_head = self.dense_head if config.dense_weight else None
        losses = PretrainLosses(self.heads, dense_head, config, self.generator)
        if config.compile:
            self.ranks.compile(network, *self.heads.values())
        self.network, self.losses = (
            self.ranks.parallel(module, own_buffers=not config.sync_batch_norm)
            for module in (network, losses)
        )

    def _sampler(self, generator: torch.Generator) -> GroupSampler:
        return GroupSampler(
            self.slices.scan,
            self.slices.slice_index,
            self.slices.num_slices,
            num_scans=self.config.num_scans,
            num_partitions=self.config.loss.num_partitions,
            slices_per_partition=self.config.slices_per_partition,
            generator=generator,
        )

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        lr: float = self.optimizer.param_groups[0]["lr"]
        return lr

    def train_step(self) -> ContrastStep:
        """Take a step; return its loss, detached, with its statistics and gamma."""
        config = self.config
        steps = config.epochs * config.steps_per_epoch
        set_lr(self.optimizer, warmup_cosine(self.step, steps, config.optim))
        batch = self._batch(self.sample(), self.step / steps)
        self.optimizer.zero_grad(set_to_none=True)
        parts, loss = self._backward(batch)
        self.optimizer.step()
        self.step += 1
        self.num_rows = 2 * batch.rows.of
        gamma = {name: value for part in parts for name, value in part.gamma.items()}
        return ContrastStep(loss, parts[0].stats, gamma)

    def _batch(self, index: Tensor, progress: float) -> StepBatch:
        """Return two views of this rank's part of some slices, and their labels."""
        config, rows = self.config, self.ranks.rows(len(index))
        index = sent_to(self.slices.images.device, rows.take(index))
        images, draw = self.slices.images[index], self.generator
        if config.dense_weight:
            views = aligned_views(images, config.augment, draw, rows)
        else:
            views = AlignedViews(independent_views(images, config.augment, draw, rows), ())
        labels = {name: column[index].repeat(2) for name, column in self.columns.items()}
        return StepBatch(views, labels, progress, rows)

    def _backward(self, batch: StepBatch) -> tuple[list[ContrastStep], Tensor]:
        """Compute the gradients; return the weighted losses, the encoder's first, and their sum."""
        parts: list[ContrastStep] = []

        def total(maps: tuple[Tensor, ...]) -> Tensor:
            parts[:] = self.losses(maps, batch)
            return torch.stack([part.loss for part in parts]).sum()

        images, chunk = batch.views.images, self.config.cached_chunk
        if chunk:
            return parts, cached_step(self.network, images, total, chunk=chunk)
        loss = total(self.network(images))
        loss.backward()  # type: ignore[no-untyped-call]
        return parts, loss.detach()

    def health(self, run: Run, epoch: int) -> dict[str, float]:
        """Return the health figures of an epoch; at three epochs save the pair weights."""
        config = self.config
        maps = feature_maps(self.encoder, self.slices.images)
        accuracy = knn_position_accuracy(pooled(maps), self.slices)
        health = {"collapse_loss": self._collapse_loss(), "knn_position_accuracy": accuracy}
        if epoch + 1 in _snapshot_epochs(config.epochs, config.loss.power):
            self._keep_weights(run, epoch, maps)
        if config.label_noise and config.encoder_weight:
            health |= self._audit(run, epoch)
        return health

    def keep_first_weights(self, run: Run) -> None:
        """Save the pair weights before the first step, where gamma is lowest."""
        self._keep_weights(run, -1, feature_maps(self.encoder, self.slices.images))

    def _keep_weights(self, run: Run, epoch: int, maps: Tensor) -> None:
        if self.config.encoder_weight:
            labels = self.columns[self.config.loss.labels[0]]
            save_pair_weights(run, self._moment(epoch), maps, self.slices, labels)

    def _moment(self, epoch: int) -> Moment:
        """Return the moment at the end of an epoch."""
        loss, progress = self.config.loss, (epoch + 1) / self.config.epochs
        head = self.heads[loss.head_of(loss.labels[0])]
        return Moment(self.step, progress, self.num_rows, head, loss)

    def _collapse_loss(self) -> float:
        config = self.config
        total = config.encoder_weight * collapse_loss(self.num_rows, config.loss)
        if config.dense_weight:
            rows = self.num_rows * config.dense.cells
            total += config.dense_weight * collapse_loss(rows, config.dense.loss)
        return total

    def _audit(self, run: Run, epoch: int) -> dict[str, float]:
        """Return how well the pair weights identify the pairs with a wrong label."""
        generator = torch.Generator().manual_seed(epoch)
        sample, batches = self._sampler(generator), []
        for _ in range(AUDIT_BATCHES):
            index = sample().to(self.slices.images.device)
            views = independent_views(self.slices.images[index], self.config.augment, generator)
            batches.append((index.repeat(2), views))
        name = self.config.loss.labels[0]
        clean, noisy = self.clean[name], self.noisy[name]
        return wrong_pairs(run, self._moment(epoch), self.encoder, batches, clean, noisy)

    def state(self) -> dict[str, Any]:
        """Return the state for a restart."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]

    def save(self, run: Run) -> Path:
        """Write the embedding and the weights; return the path of the encoder's weights."""
        features = pooled(feature_maps(self.encoder, self.slices.images))
        save_embedding(run, features, self.slices)
        config = self.config
        if config.dense_weight:
            metadata = decoder_metadata(config.model, config.dense.num_blocks)
            path = run.folder / "decoder.safetensors"
            save_weights(path, self.decoder_part.state_dict(), metadata)
        path = run.folder / ENCODER_FILE
        seen = pretrained_on(config.data, self.slices.scans, config.init)
        metadata = encoder_metadata(config.model) | seen.metadata()
        save_weights(path, self.encoder.state_dict(), metadata)
        return path


def _snapshot_epochs(epochs: int, power: float) -> list[int]:
    """Return the ends of epochs between which the pace grows by about as much each time."""
    parts = range(1, WEIGHT_SNAPSHOTS)
    shares = [(part / (WEIGHT_SNAPSHOTS - 1)) ** (1 / power) for part in parts]
    return [max(1, round(share * epochs)) for share in shares]


def collapse_loss(num_rows: int, config: LossConfig) -> float:
    """Return the loss of a collapsed embedding without pace: log(N - 1) times sum of lambda."""
    return math.log(num_rows - 1) * sum(config.of_label(n, config.weights) for n in config.labels)
