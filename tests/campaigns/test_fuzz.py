import json
import re

import pytest

from tests.campaigns import fuzz
from tests.campaigns.fuzz import main
from tests.campaigns.fuzz_inputs import WHITE
from tslm.tokenizer.pretokenize import PATTERN


def lines(capsys):
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


def test_a_short_campaign_finds_no_difference(capsys):
    assert main(["--seed", "1", "--seconds", "4"]) == 0
    found, err = lines(capsys)
    assert err == ""
    assert len({line["name"] for line in found}) == len(found) == 7
    assert all(line["tried"] > 0 and line["failed"] == 0 and line["seed"] == 1 for line in found)


def test_a_fault_in_the_scanner_is_found_and_its_case_can_be_repeated(capsys, monkeypatch):
    right = fuzz.pretoken_bounds
    # The planted fault: the ideographic space does not count as white space. Few texts contain it.
    monkeypatch.setattr(fuzz, "pretoken_bounds", lambda data, specials=None: right(
        data.replace("\u3000".encode(), "字".encode()), specials))  # fmt: skip
    assert main(["--family", "scanner", "--count", "300", "--seed", "5"]) == 1
    (summary,), err = lines(capsys)
    assert (summary["tried"], summary["seed"]) == (300, 5)
    failed = re.findall(r"^scanner: case (\d+) of seed 5 failed; repeat it with (.+)$", err, re.MULTILINE)
    assert len(failed) == summary["failed"] > 0
    assert "\ntext = '" in err

    number, options = failed[0]
    assert main(options.split()) == 1
    (again,), err_again = lines(capsys)
    assert (again["tried"], again["failed"]) == (1, 1)
    text = re.search(r"^text = .*$", err, re.MULTILINE).group()
    assert text in err_again
    assert "\\u3000" in text
    monkeypatch.undo()
    assert main(options.split()) == 0
    assert number in options


def test_a_missing_error_is_found(capsys, monkeypatch):
    monkeypatch.setattr(fuzz, "count_pretokens", lambda *arguments, **more: {})
    assert main(["--family", "damaged_bytes", "--family", "json_lines", "--count", "30"]) == 1
    assert all(line["failed"] > 5 for line in lines(capsys)[0])


def test_ctrl_c_ends_a_campaign_with_its_summary(capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(fuzz, "cut_blocks", interrupted)
    assert main(["--family", "scanner", "--family", "cuts", "--count", "2"]) == 130
    found, err = lines(capsys)
    assert [line["tried"] for line in found] == [2, 0]
    assert err == ""


def test_the_campaign_uses_all_white_space_of_the_pattern():
    assert len(WHITE) == len(set(WHITE)) == 25
    assert PATTERN.findall("".join(WHITE)) == ["".join(WHITE)]


@pytest.mark.parametrize("options", [["--family", "nothing"], ["--seconds", "long"]])
def test_a_wrong_option_prints_the_usage(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    assert "usage: python -m tests.campaigns.fuzz" in capsys.readouterr().err
