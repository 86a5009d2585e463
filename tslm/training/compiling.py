"""Compile the training step where it pays, and fall back to the step as written if that fails.

torch.compile fuses the operations between two matmuls into Triton kernels (on a CPU: C++ loops). The matmuls, most of a
step, stay as they are. Compiling needs a C++ compiler and up to a minute; later runs find most of the result in the
compiler's cache. On a CPU a step is compiled only on request, because the C kernels are as fast and available at once.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from tslm.training.module import LanguageModule

Choice = bool | Literal["auto"]

# Floating-point operations of a whole run above which compiling saves more time than it takes. On an H200 they take 40
# seconds, and compiling saves a third of them.
WORTH_FLOPS = {"cuda": 8e15}
WORTH_MINUTES = 2 / 3  # the 40 seconds


def pays(choice: Choice, flops: float, device: str, minutes: float | None = None) -> bool:
    """Whether to compile for a run of `flops` floating-point operations; `auto` compares them with `WORTH_FLOPS`.

    If the run's length is given in `minutes`, `auto` compiles where it takes longer than `WORTH_FLOPS` do.
    """
    if minutes is not None:
        flops = WORTH_FLOPS.get(device, 0) * minutes / WORTH_MINUTES
    return flops >= WORTH_FLOPS.get(device, math.inf) if choice == "auto" else choice


def missing_compiler() -> str | None:
    """Return why this machine cannot compile, or None if no reason is known in advance."""
    if sys.platform == "win32":
        return "on Windows it is not supported"
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(name) else f"there is no C++ compiler called {name}; CXX may name another"


def try_compiled(module: LanguageModule, batch: tuple[torch.Tensor, torch.Tensor], say: Callable[[str], Any]) -> bool:
    """Compile a module's step for batches like this one; if that fails, leave the module as it was.

    The loss and its gradients are computed once and discarded. Otherwise the backward pass would be compiled inside
    Lightning's backward, where its errors could not be caught.

    The batch has the shape that all steps have.

    Returns:
        Whether the step is compiled now.
    """
    reason = missing_compiler()
    if reason is None:
        say("Compiling the training step: up to a minute, less if the compiler remembers it")
        started = time.perf_counter()
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing CUDA on CPUs
        with torch.no_grad():
            # The door compares its substitutes before the compiler asks which of them it may see.
            module.training_loss(*(each[:1] for each in batch))
        module.use_compiled(True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler warns of code that it inspects but does not compile
                loss = module.training_loss(*batch)
                torch.autograd.grad(loss, [each for each in module.parameters() if each.requires_grad])
        except _compiler_errors() as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            say(f"Compiled the training step in {time.perf_counter() - started:.0f} s")
            return True
    module.use_compiled(False)
    say(f"Not compiled, so that steps take somewhat longer: {reason}")
    return False


def _compiler_errors() -> tuple[type[Exception], ...]:
    from torch._dynamo.exc import TorchDynamoException  # importing the compiler takes seconds
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError, OSError, ImportError
