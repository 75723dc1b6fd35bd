"""Discrete mutual information: both views are assigned to the same, equally used clusters.

    c, c'  = softmax(head(maps)) of the first and the second view, at the same place
    P      = mean over places of c c'^T, symmetrised                  (clusters, clusters)
    I      = sum_ij P_ij log(P_ij / (P_i P_j))                        in nats, at most log(clusters)
    L      = consistency mean (p - p')^2 - sum over maps of weight x mean over heads of I

(IIC, arXiv:1807.06653.) The maps are Conv5, averaged over the slice, and Up_conv3 and Up_conv2,
cell by cell; p, p' are the softmax of the segmenter. Maps, weights, clusters and heads are those of
the code released with arXiv:2107.13741 ("udaiic").
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from spcl_fast.precision import at_least_float32
from spcl_fast.segmentation.finetune.semi.term import Batch, Term
from spcl_fast.segmentation.pretrain.views import AlignedViews
from spcl_fast.segmentation.runs.ranks import ALONE, Ranks

MAP_WEIGHTS = (0.1, 0.05, 0.05)  # Conv5, Up_conv3, Up_conv2
TINY = torch.finfo(torch.float32).tiny


class MutualInformation(Term):
    """Mutual information of clusters on three maps, and consistency of the predictions.

    Args:
        conv5: Channels of Conv5.
        up_conv3: Channels of Up_conv3.
        up_conv2: Channels of Up_conv2.
        num_clusters: Clusters per head.
        num_heads: Heads per map, each with its own clustering.
        weights: Weights of Conv5, Up_conv3 and Up_conv2.
        consistency: Weight of the squared difference of the predictions.

    Raises:
        ValueError: If num_clusters or num_heads is not positive.
    """

    def __init__(
        self,
        conv5: int,
        up_conv3: int,
        up_conv2: int,
        num_clusters: int = 20,
        num_heads: int = 5,
        weights: tuple[float, float, float] = MAP_WEIGHTS,
        consistency: float = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (("num_clusters", num_clusters), ("num_heads", num_heads)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.num_clusters, self.weights, self.consistency = num_clusters, weights, consistency
        outputs = num_clusters * num_heads
        channels = (conv5, up_conv3, up_conv2)
        self.heads = nn.ModuleList(nn.Conv2d(c, outputs, kernel_size=1) for c in channels)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, () float32; the first view is the target of the consistency."""
        pooled = batch.features[-1].mean((2, 3), keepdim=True)
        *_, up_conv3, up_conv2 = batch.decoder_maps
        first, second = batch.views.halves(batch.probabilities)
        loss = self.consistency * batch.rows.mean(mse_loss(second, first.detach()))
        maps = (pooled, up_conv3, up_conv2)
        for head, features, weight in zip(self.heads, maps, self.weights, strict=True):
            scores = head(at_least_float32(features))
            loss = loss - weight * self._information(scores, batch.views, batch.ranks)
        return loss

    def _information(self, scores: Tensor, views: AlignedViews, ranks: Ranks = ALONE) -> Tensor:
        """Return the mean over heads for scores (2 U, heads x clusters, h, w)."""
        clusters = scores.reshape(len(scores), -1, self.num_clusters, *scores.shape[2:]).softmax(2)
        first, second = views.halves(clusters.flatten(1, 2))
        shape = (len(first), -1, self.num_clusters, first[0, 0].numel())  # (U, heads, C, h w)
        first, second = first.reshape(shape), second.reshape(shape)
        joint = ranks.sum((first @ second.mT).sum(0))
        return mutual_information(joint / joint.sum((1, 2), keepdim=True)).mean()


def mutual_information(joint: Tensor) -> Tensor:
    """Return the mutual information of two variables, in nats.

    Args:
        joint: (..., C, C) floating point, non-negative, each matrix of sum 1; symmetrised here.

    Returns:
        (...), with finite gradients where a probability is 0.
    """
    joint = (joint + joint.mT) / 2
    # the marginals of the symmetrised matrix are equal
    return 2 * _entropy(joint.sum(-1)).sum(-1) - _entropy(joint).sum((-2, -1))


def _entropy(p: Tensor) -> Tensor:
    return -p * p.clamp_min(TINY).log()
