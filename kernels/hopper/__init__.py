"""Kernels for GPUs of compute capability 9.0, in Gluon.

Some warps load tiles into a ring of buffers (TMA), and groups of four multiply them (wgmma), with
the exponentials of one tile under the products of another. kernels/hopper/_choice.py says when they
run; elsewhere the plain kernels do, with the same inputs and outputs. Their modules are imported
where they are launched: a Triton may lack Gluon.
"""
