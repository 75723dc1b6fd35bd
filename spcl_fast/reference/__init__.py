"""The specification of every op: dense, short, differentiated by autograd any number of times."""

from spcl_fast.reference.pair_lse import pair_lse
from spcl_fast.reference.positive_pair_histogram import positive_pair_histogram
from spcl_fast.reference.positive_pair_loss import positive_mask, positive_pair_loss

__all__ = ["pair_lse", "positive_mask", "positive_pair_histogram", "positive_pair_loss"]
