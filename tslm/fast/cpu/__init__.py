"""Substitutes for a CPU, in C. build.py compiles the C files at their first use.

For training, kernels.py wraps attention.c and norm_swiglu_loss.c. For generation, decoder.py wraps decode.c, and
sampling.py wraps sampling.c. These include simd.h. For the tokenizer, words.py, merge.py and
make_merges.py wrap one library of three files, without torch.
"""
