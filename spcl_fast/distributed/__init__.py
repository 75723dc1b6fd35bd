"""Losses of a batch whose rows are spread over the ranks of a process group."""

from spcl_fast.distributed.collectives import num_ranks, rank_in
from spcl_fast.distributed.contrastive_rows import BatchRows, contrastive_rows
from spcl_fast.distributed.infonce import infonce_rows

__all__ = ["BatchRows", "contrastive_rows", "infonce_rows", "num_ranks", "rank_in"]
