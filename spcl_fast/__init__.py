"""Self-paced contrastive learning over meta-labels: losses in O(N D) memory."""

from spcl_fast._version import __version__
from spcl_fast.cached_step import cached_step
from spcl_fast.losses import (
    ContrastiveLossOutput,
    InfoNCELoss,
    LabelTerm,
    NTXentLoss,
    SelfPacedContrastiveLoss,
    SupConLoss,
    YAwareLoss,
)
from spcl_fast.memory_queue import MemoryQueue
from spcl_fast.momentum import momentum_update
from spcl_fast.ops import PositivePairLoss, pair_lse, positive_pair_histogram, positive_pair_loss

__all__ = [
    "ContrastiveLossOutput",
    "InfoNCELoss",
    "LabelTerm",
    "MemoryQueue",
    "NTXentLoss",
    "PositivePairLoss",
    "SelfPacedContrastiveLoss",
    "SupConLoss",
    "YAwareLoss",
    "__version__",
    "cached_step",
    "momentum_update",
    "pair_lse",
    "positive_pair_histogram",
    "positive_pair_loss",
]
