"""Kernels in C++ for CPUs that multiply bfloat16 (AMX or AVX-512), compiled where they run; elsewhere PyTorch's path
stands in."""
