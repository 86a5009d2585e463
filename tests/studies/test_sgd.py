import math

import pytest

from tslm.__main__ import main
from tslm.studies.sgd import losses, verdict


def test_each_step_multiplies_the_weights_by_the_factor_worked_out_by_hand():
    # mean(w²) over 100 weights has the gradient 2 w / 100 = w / 50, so lr 10 makes w ← w (1 - 10 / 50) = 0.8 w first.
    at_ten = losses(10.0)
    assert len(at_ten) == 11
    assert at_ten[1] == pytest.approx(0.64 * at_ten[0])
    assert at_ten[2] == pytest.approx(at_ten[1] * (1 - 0.2 / math.sqrt(2)) ** 2)
    at_hundred = losses(100.0)
    assert at_hundred[1] == pytest.approx(at_hundred[0])  # 1 - 100 / 50 = -1: the first step only changes the sign
    assert at_hundred[4] == pytest.approx(0.0, abs=1e-10)  # t = 3: 1 - 2 / √4 = 0
    assert losses(1000.0)[1] == pytest.approx(19**2 * at_ten[0], rel=1e-5)  # 1 - 20 = -19
    assert losses(1.0)[1] == pytest.approx(0.98**2 * at_ten[0])


def test_the_verdicts_are_those_of_the_four_rates():
    words = [verdict(losses(rate)).split(",")[0].split(":")[0] for rate in (1.0, 10.0, 100.0, 1000.0)]
    assert words == ["falls slowly", "falls", "falls fastest", "diverges"]
    assert verdict(losses(1e30)) == "diverges: the loss grows from 26.3 beyond the largest float32"
    assert verdict(losses(0.0)) == "stays at 26.3"


def test_study_sgd_prints_its_table_and_refuses_wrong_numbers(capsys):
    assert main(["study", "sgd"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["steps", "lr", "1", "lr", "10", "lr", "100", "lr", "1000"] in rows
    assert [row[0] for row in rows if row and row[0].isdigit()][:11] == [str(step) for step in range(11)]
    for words, sentence in (
        (["--lr", "[-1]"], "lr is -1"), (["--lr", "[]"], "lr is []"), (["--iterations", "0"], "iterations is 0"),
    ):
        assert main(["study", "sgd", *words]) == 2
        assert capsys.readouterr().err.startswith(f"tslm: {sentence}")
