"""The differentiable ops that the losses are made of."""

from spcl_fast.operands import Label, PositivePairLoss
from spcl_fast.ops._impl import Impl
from spcl_fast.ops.contrastive_rows import contrastive_rows
from spcl_fast.ops.contrastive_terms import contrastive_terms
from spcl_fast.ops.infonce_terms import infonce_terms
from spcl_fast.ops.pair_lse import pair_lse
from spcl_fast.ops.positive_pair_histogram import positive_pair_histogram
from spcl_fast.ops.positive_pair_loss import positive_pair_loss

__all__ = [
    "Impl",
    "Label",
    "PositivePairLoss",
    "contrastive_rows",
    "contrastive_terms",
    "infonce_terms",
    "pair_lse",
    "positive_pair_histogram",
    "positive_pair_loss",
]
