"""`positive_pair_histogram` of this implementation: the panels of `chunked`.

It runs once an epoch at most, over positive pairs alone, so a kernel of its own would not pay.
"""

from spcl_fast.chunked import positive_pair_histogram

__all__ = ["positive_pair_histogram"]
