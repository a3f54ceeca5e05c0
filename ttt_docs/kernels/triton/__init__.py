"""Triton kernels for NVIDIA GPUs. Only `dispatch` imports this package, and only where its kernels can run.

Files named `*_kernels.py` hold what the device executes; the file beside each holds the launches and the autograd glue.
What they compute is defined by the plain PyTorch functions in `ttt_docs.kernels`.
"""
