"""Twenty steps give the losses in the repository, with the door open and shut."""

import contextlib
import json
import math

import pytest

from tests.golden_curve import CURVE, VOCAB_SIZE, golden_curve
from tslm import fast
from tslm.model import ops


@pytest.mark.parametrize("door", ["open", "shut"])
def test_the_curve_is_the_one_in_the_repository(door):
    expected = json.loads(CURVE.read_text(encoding="utf-8"))
    with fast.shut() if door == "shut" else contextlib.nullcontext():
        found = golden_curve()
    # Machines round differently, and twenty steps amplify that. Between the two forms here it is 1.2e-7.
    assert found == pytest.approx(expected, rel=2e-4)
    assert expected[0] == pytest.approx(math.log(VOCAB_SIZE), rel=0.05)
    assert expected[-1] < 0.75 * expected[0]


def test_a_changed_formula_changes_the_curve(monkeypatch):
    plain = ops.rms_norm.plain
    monkeypatch.setattr(ops.rms_norm, "plain", lambda x, gain, eps: plain(x, gain, 10 * eps + 1e-2))
    expected = json.loads(CURVE.read_text(encoding="utf-8"))
    with fast.shut():
        assert golden_curve() != pytest.approx(expected, rel=2e-4)
