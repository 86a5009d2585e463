import pytest

from tslm.commands.options import (
    asks_for_help,
    flag_keys,
    get_key,
    is_stated,
    leaves,
    put_key,
    read_yaml,
    stated_options,
)
from tslm.errors import MissingFileError


def test_stated_options_pairs_each_option_with_its_value():
    words = ["a.txt", "--a=1", "--b+", "2", "--c", "-3.5", "-d=x=y", "--e"]
    assert stated_options(words) == [("--a", "1"), ("--b", "2"), ("--c", "-3.5"), ("-d", "x=y"), ("--e", "")]
    assert stated_options([]) == []


def test_flag_keys_are_the_dotted_keys_of_a_command_line():
    assert flag_keys(["--optimizer.lr=3", "--data.train_files+", "a.txt", "-c", "b.yaml"]) == {
        "optimizer.lr", "data.train_files", "config"}


def test_a_command_line_asks_for_help_by_any_of_three_options():
    assert all(asks_for_help(["--a", "1", word]) for word in ("-h", "--help", "--print_config", "--print_config=x"))
    assert not asks_for_help(["--a=-h", "help"])


@pytest.mark.parametrize(("key", "stated", "expected"), [
    ("a.b", {"a.b"}, True), ("a.b", {"a"}, True), ("a", {"a.b"}, True), ("a.b", {"a.bc"}, False), ("a", {"b.a"}, False),
])
def test_an_option_is_stated_with_its_group_or_its_parts(key, stated, expected):
    assert is_stated(key, stated) is expected


def test_nested_values_are_read_and_set_by_dotted_keys():
    values = {"a": {"b": 1, "c": {}}, "d": [2]}
    assert list(leaves(values)) == [("a.b", 1), ("a.c", {}), ("d", [2])]
    put_key(values, "a.b", 3)
    put_key(values, "e", 4)
    assert values == {"a": {"b": 3, "c": {}}, "d": [2], "e": 4}
    assert get_key(values, "a.b") == 3


def test_a_missing_configuration_file_is_a_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match=r"a\.yaml does not exist"):
        read_yaml(tmp_path / "a.yaml")
