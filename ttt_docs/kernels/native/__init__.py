"""Kernels in C++ for CPUs with AMX, compiled where they run; PyTorch's path stands in wherever that is not possible."""
