"""Other machines on this one: environments that keep a process from using what this processor and system have.

Torch and its libraries, and our kernels, read these variables when they are loaded, so a mode holds for a new process.
"""

import argparse
import os
import sys
from collections.abc import Sequence

MODES: dict[str, dict[str, str]] = {
    "native": {},
    # Laptops and most servers: vectors of 8 float32, no bfloat16.
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TSLM_CFLAGS": "-mno-avx512f",
    },
    # Our kernels on any 64-bit x86: vectors of 4 float32, as on ARM.
    "sse2": {"ATEN_CPU_CAPABILITY": "default", "TSLM_CFLAGS": "-march=x86-64"},
    "no_compiler": {"CC": "there-is-no-compiler"},
    "one_thread": {"OMP_NUM_THREADS": "1"},
}


def add_mode(parser: argparse.ArgumentParser) -> None:
    """Add the option `--mode`."""
    parser.add_argument(
        "--mode", choices=MODES, default="native",
        help="avx2 and sse2 limit the vectors, no_compiler hides the C compiler, one_thread is one (default: native)")


def enter(mode: str, module: str, arguments: Sequence[str] | None) -> None:
    """Let `python -m MODULE ARGUMENTS` take the place of this process, unless this one runs in the mode already."""
    if not MODES[mode].items() <= os.environ.items():
        words = sys.argv[1:] if arguments is None else arguments
        os.execve(sys.executable, [sys.executable, "-m", module, *words], os.environ | MODES[mode])
