"""Compiling the training step: when it pays, the first try, and the way back to the step as it is written.

torch.compile makes a few loops of Triton (on a CPU: of C++) of the passes that lie between two matmuls. The matmuls
themselves, most of a step, stay what they are. It needs a C++ compiler and up to a minute; a second run finds most of
the work in the compiler's cache. On a CPU only who asks gets it: the kernels in C (model/native) do as much, at once.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

import torch

Choice = bool | Literal["auto"]

# Floating-point operations of a whole run from which on compiling saves more time than it takes: on an H200 those of 40
# seconds, of which it saves a third.
WORTH_FLOPS = {"cuda": 8e15}


class Compilable(Protocol):
    """What is compiled: a loss whose parts can be exchanged for compiled ones."""

    def training_loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch, by the parts of it that training computes at a time."""

    def use_compiled(self, on: bool) -> None:
        """Exchange the parts, or take them back."""

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """Return what gradients are taken of."""


def pays(choice: Choice, flops: float, device: str) -> bool:
    """Whether to compile for a run of `flops` floating-point operations: `auto` asks whether they are enough."""
    return flops >= WORTH_FLOPS.get(device, math.inf) if choice == "auto" else choice


def missing_compiler() -> str | None:
    """Say why nothing can be compiled on this machine; None if there is no reason known beforehand."""
    if sys.platform == "win32":
        return "on Windows it is not tried"
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(name) else f"there is no C++ compiler called {name}; CXX may name another"


def try_compiled(module: Compilable, batch: tuple[torch.Tensor, torch.Tensor], say: Callable[[str], Any]) -> bool:
    """Compile a module's step for batches like this one; if that fails, leave the module as it was.

    The loss and its gradients are computed once and thrown away: the backward pass, too, is compiled at its first use,
    where nobody could catch its errors.

    Args:
        module: what to compile.
        batch: inputs and targets, as they will come in every step.
        say: told what happens, a line each time.

    Returns:
        Whether the step is compiled now.
    """
    reason = missing_compiler()
    if reason is None:
        say("Compiling the training step: up to a minute, less if the compiler remembers it")
        started = time.perf_counter()
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA where none is needed
        module.use_compiled(True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the compiler's looking at everything, also at what it leaves alone
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
    from torch._dynamo.exc import TorchDynamoException  # imports the compiler, which takes seconds
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError, OSError, ImportError
