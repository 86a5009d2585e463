"""The CPU's kernels: tensors in, tensors out, by C that is compiled at its first use (build.py) and then checked.

attention.c and passes.c do what lies between the matmuls of a training step; functions.py makes autograd functions of
them. Generation has kernels of its own, which share kernel.h and build.py.
"""

from tslm.model.native.functions import losses_and_gradient, rms_norm, self_attention, swiglu_linear, takes

__all__ = ["losses_and_gradient", "rms_norm", "self_attention", "swiglu_linear", "takes"]
