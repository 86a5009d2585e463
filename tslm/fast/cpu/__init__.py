"""Substitutes for a CPU, in C that is compiled at its first use (build.py).

For training kernels.py wraps attention.c and norm_swiglu_loss.c; for generation decoder.py wraps decode.c and
sampling.py wraps sampling.c. All of them include simd.h.
"""
