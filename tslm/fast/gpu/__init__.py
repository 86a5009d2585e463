"""Substitutes for a CUDA GPU, in Triton. They are imported only for tensors on a GPU.

Triton's interpreter runs the kernels on a CPU, which is how the tests check their numbers.
"""
