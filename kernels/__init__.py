"""Triton kernels of spcl_fast; import them as ``spcl_fast.kernels.<op>``."""

if __name__ != "spcl_fast.kernels":
    raise ImportError(
        "the folder kernels/ is the package spcl_fast.kernels; import it by that name"
    )
