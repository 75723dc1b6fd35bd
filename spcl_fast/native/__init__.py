"""The ops in C++ and CUDA, O(N D) memory: tiles that stay in the cache on a CPU, panels on a GPU.

Importing this package needs PyTorch alone; running an op needs the extension spcl_fast._C, which
`is_built()` reports, and on a GPU spcl_fast._C_cuda too, as `has_code_for()` reports. The algorithm
is described at the head of csrc/cpu/<op>.cpp and csrc/cuda/<op>.cuh.
"""

from spcl_fast.native._extension import (
    build_info,
    cuda_architectures,
    has_code_for,
    is_built,
    release_kept_memory,
    why_not_built,
    why_not_on_cuda,
)
from spcl_fast.native.contrastive_rows import contrastive_rows_bwd, contrastive_rows_fwd
from spcl_fast.native.contrastive_terms import contrastive_terms_bwd, contrastive_terms_fwd
from spcl_fast.native.infonce_terms import infonce_terms_bwd, infonce_terms_fwd
from spcl_fast.native.pair_lse import pair_lse_bwd, pair_lse_fwd
from spcl_fast.native.positive_pair_histogram import positive_pair_histogram
from spcl_fast.native.positive_pair_loss import positive_pair_loss_bwd, positive_pair_loss_fwd
from spcl_fast.native.tile_cache import get_tile_cache_mib, set_tile_cache_mib

__all__ = [
    "build_info",
    "contrastive_rows_bwd",
    "contrastive_rows_fwd",
    "contrastive_terms_bwd",
    "contrastive_terms_fwd",
    "cuda_architectures",
    "get_tile_cache_mib",
    "has_code_for",
    "infonce_terms_bwd",
    "infonce_terms_fwd",
    "is_built",
    "pair_lse_bwd",
    "pair_lse_fwd",
    "positive_pair_histogram",
    "positive_pair_loss_bwd",
    "positive_pair_loss_fwd",
    "release_kept_memory",
    "set_tile_cache_mib",
    "why_not_built",
    "why_not_on_cuda",
]
