"""Contrastive losses over embeddings, one per file."""

from spcl_fast.losses.infonce import InfoNCELoss
from spcl_fast.losses.ntxent import NTXentLoss
from spcl_fast.losses.result import ContrastiveLossOutput, LabelTerm
from spcl_fast.losses.self_paced import SelfPacedContrastiveLoss
from spcl_fast.losses.supcon import SupConLoss
from spcl_fast.losses.y_aware import YAwareLoss

__all__ = [
    "ContrastiveLossOutput",
    "InfoNCELoss",
    "LabelTerm",
    "NTXentLoss",
    "SelfPacedContrastiveLoss",
    "SupConLoss",
    "YAwareLoss",
]
