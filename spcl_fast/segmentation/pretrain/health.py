"""Label-free health of an embedding: kNN slice position, and a snapshot of the pair weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spcl_fast.atomic_file import atomic_file
from spcl_fast.segmentation.data.meta_labels import position_partition
from spcl_fast.segmentation.data.slices import Slices
from spcl_fast.segmentation.networks.encoders import last_map
from spcl_fast.segmentation.networks.evaluation_mode import evaluation_mode
from spcl_fast.segmentation.pretrain.moment import Moment
from spcl_fast.segmentation.runs.run import Run

KNN_NEIGHBOURS = 5
KNN_PARTITIONS = 6


@torch.no_grad()
def feature_maps(encoder: nn.Module, images: Tensor, batch_size: int = 128) -> Tensor:
    """Return the encoder's last map of every image, (n, C, h, w), in evaluation mode."""
    starts = range(0, len(images), batch_size)
    with evaluation_mode(encoder):
        return torch.cat([last_map(encoder(images[i : i + batch_size])) for i in starts])


def pooled(maps: Tensor) -> Tensor:
    """Return the L2-normalised average over space, (n, C)."""
    return nn.functional.normalize(maps.mean((2, 3)), dim=1)


def knn_position_accuracy(features: Tensor, slices: Slices) -> float:
    """Return the accuracy of a nearest-neighbour prediction of the slice position.

    Args:
        features: (n, C) unit rows, one per slice.
        slices: The slices; their positions are divided into 6 partitions.

    Returns:
        Accuracy of the majority of the 5 nearest neighbours from other patients.
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


def save_pair_weights(
    run: Run, moment: Moment, maps: Tensor, slices: Slices, labels: Tensor
) -> None:
    """Write weights/step_*.npz: w_ij between all slices of two scans, sorted base to apex.

    The denominators are those of a batch as large as in training that contains the two scans, so
    that gamma has the same meaning as in training.

    Args:
        run: Where to write.
        moment: The moment of the training.
        maps: (n, C, h, w), the encoder's last map of every slice.
        slices: The slices.
        labels: (n,) of the first meta-label.
    """
    shown = (slices.scan < 2).nonzero().flatten()
    others = (slices.scan >= 2).nonzero().flatten()
    pick = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))
    num_others = max(0, moment.num_rows - len(shown))
    batch = torch.cat([shown, others[pick.to(others.device)][:num_others]])
    pairs = moment.pairs(maps[batch], labels[batch], len(shown))
    arrays = {
        "weight": torch.where(pairs.positive, pairs.weight, 0),
        "similarity": pairs.similarity * moment.config.tau,
        "position": slices.position[shown],
        "scan": slices.scan[shown],
        "positive": pairs.positive,
        "gamma": torch.as_tensor(pairs.gamma, dtype=torch.float64),
        "step": torch.tensor(moment.step),
    }
    _save_arrays(run.folder / "weights" / f"step_{moment.step:06d}.npz", arrays)
