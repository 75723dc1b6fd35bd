"""Label-free health of an embedding: kNN slice position, and a snapshot of the pair weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spcl_fast.atomic_file import atomic_file
from spcl_fast.ops import pair_lse
from spcl_fast.pair_weights import pair_weights
from spcl_fast.segmentation.data.meta_labels import position_partition
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.pretrain.config import LossConfig
from spcl_fast.segmentation.pretrain.contrast import gamma_of
from spcl_fast.segmentation.runs.run import Run

KNN_NEIGHBOURS = 5
KNN_PARTITIONS = 6


@torch.no_grad()
def feature_maps(encoder: nn.Module, images: Tensor, batch_size: int = 128) -> Tensor:
    """Return the encoder's last map of every image, (n, C, h, w), in evaluation mode."""
    was_training = encoder.training
    encoder.eval()
    maps = torch.cat(
        [encoder(images[i : i + batch_size])[-1] for i in range(0, len(images), batch_size)]
    )
    encoder.train(was_training)
    return maps


def pooled(maps: Tensor) -> Tensor:
    """Return the L2-normalised average over space, (n, C)."""
    return nn.functional.normalize(maps.mean((2, 3)), dim=1)


def knn_position_accuracy(features: Tensor, slices: Slices) -> float:
    """Return the share of slices whose position the nearest slices of other patients tell.

    Args:
        features: (n, C) unit rows, one a slice.
        slices: The slices; their position is cut into 6 parts.

    Returns:
        Accuracy of the majority among the 5 nearest neighbours, a slice's own patient left out.
    """
    labels = position_partition(slices.slice_index, slices.num_slices, KNN_PARTITIONS)
    similarity = features @ features.T
    patient = slices.meta["patient"]
    similarity[patient[:, None] == patient[None, :]] = -torch.inf
    nearest = similarity.topk(min(KNN_NEIGHBOURS, len(features)), dim=1).indices
    votes = nn.functional.one_hot(labels[nearest], KNN_PARTITIONS).sum(1)
    return float((votes.argmax(1) == labels).float().mean())


def save_embedding(run: Run, features: Tensor, slices: Slices) -> None:
    """Write embedding.npz: z, position and the meta-labels of every slice."""
    _save_arrays(
        run.folder / "embedding.npz", {"z": features, "position": slices.position, **slices.meta}
    )


def _save_arrays(path: Path, tensors: Mapping[str, Tensor]) -> None:
    arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in tensors.items()}
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


@torch.no_grad()
def save_pair_weights(
    run: Run,
    step: int,
    progress: float,
    maps: Tensor,
    slices: Slices,
    labels: Tensor,
    head: nn.Module,
    config: LossConfig,
    num_rows: int,
) -> None:
    """Write weights/step_*.npz: w_ij between all slices of two scans, sorted base to apex.

    The denominators come from a batch of `num_rows` slices, the two scans among them, so that
    gamma means what it means in training.
    """
    shown = (slices.scan < 2).nonzero().flatten()
    others = (slices.scan >= 2).nonzero().flatten()
    pick = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
    batch = torch.cat([shown, others[pick.to(others.device)][: max(0, num_rows - len(shown))]])
    was_training = head.training
    z = head.eval()(maps[batch])
    head.train(was_training)
    y, n = labels[batch], len(shown)
    gamma = gamma_of(config.labels[0], z, y, progress, config)
    similarity = (z[:n] @ z[:n].T) / config.tau
    loss = pair_lse(z, config.tau)[:n, None] - similarity
    window = config.window_of(config.labels[0]) or 0.0
    positive = (
        ((y[:n, None] - y[None, :n]).abs() <= window)
        & (y[:n, None] >= 0)
        & ~torch.eye(n, dtype=torch.bool, device=y.device)
    )
    weight = torch.where(positive, pair_weights(loss, gamma, config.mode), 0)
    folder = run.folder / "weights"
    folder.mkdir(exist_ok=True)
    arrays = {
        "weight": weight,
        "similarity": similarity * config.tau,
        "position": slices.position[shown],
        "scan": slices.scan[shown],
        "positive": positive,
        "gamma": torch.as_tensor(gamma, dtype=torch.float64),
        "step": torch.tensor(step),
    }
    _save_arrays(folder / f"step_{step:06d}.npz", arrays)
