"""The ops from PyTorch alone: panels of `torch.mm`, O(N D) memory, on every device."""

from spcl_fast.chunked.pair_lse import pair_lse_bwd, pair_lse_fwd
from spcl_fast.chunked.positive_pair_histogram import positive_pair_histogram
from spcl_fast.chunked.positive_pair_loss import positive_pair_loss_bwd, positive_pair_loss_fwd

__all__ = [
    "pair_lse_bwd",
    "pair_lse_fwd",
    "positive_pair_histogram",
    "positive_pair_loss_bwd",
    "positive_pair_loss_fwd",
]
