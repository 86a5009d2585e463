"""Other machines on this one: environments that keep a process from using what this processor and system have.

Torch and its libraries, and our kernels, read these variables when they are loaded, so a mode holds for a new process.
"""

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
