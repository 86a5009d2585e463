"""The kernels on other machines than this one: their tests, in processes that lack wide vectors or a compiler."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, needs_compiler
from tests.modes import MODES


@needs_compiler
@pytest.mark.parametrize("mode", ["avx2", "sse2"])
def test_the_kernels_are_right_with_narrower_vectors(mode):
    """Those tests are left out that compile faulty kernels."""
    run_tests(mode, "tests/fast/cpu/test_kernels.py", "tests/fast/cpu/test_decoder.py", "-k", "not faulty")


def test_without_a_compiler_torchs_operators_are_right():
    run_tests("no_compiler", "tests/fast/test_operators.py", "tests/test_nn_utils.py", "tests/test_model.py",
              "-W", "ignore:functions run as they are written")


def run_tests(mode, *words):
    environment = os.environ | MODES[mode] | {"OMP_NUM_THREADS": "2"}
    for name in [name for name in environment if name.startswith("PYTEST")]:
        del environment[name]
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words], cwd=ROOT,
                         env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "passed" in run.stdout
    assert "skipped" not in run.stdout
