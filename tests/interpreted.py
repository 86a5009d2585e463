"""Triton kernels on a CPU: what a child process makes of them in Triton's interpreter, and what compiles for a GPU.

Whether a kernel is interpreted is decided when its file is imported, so it takes another process.
"""

import os
import subprocess
import sys

import pytest
import torch


def interpreted(folder, code):
    """Run code that fills `results`, with `torch` imported and Triton's interpreter on, and return what it filled."""
    pytest.importorskip("triton", reason="Triton has no wheels for this system")
    path = folder / "results.pt"
    source = f"import torch\nresults = {{}}\n{code}\ntorch.save(results, {str(path)!r})"
    environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return torch.load(path, weights_only=True)


def compile_for_gpu(monkeypatch, folder, kernel, types, constants):
    """Compile a kernel for an A100, whose kind of matmul all later GPUs know; return the shared memory that it takes.

    Args:
        types: of the arguments that are not float32: Triton's names, such as "*bf16" for a pointer.
        constants: the arguments that are constants.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*fp32" if name.endswith("_ptr") else "fp32")
        for name in kernel.arg_names
    }
    return compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", 80, 32)).metadata.shared
