import pytest

from tslm.commands.options import (
    asks_for_help,
    config_folder,
    find_shipped,
    flag_keys,
    get_key,
    is_stated,
    leaves,
    put_key,
    read_yaml,
    stated_options,
    stated_values,
)
from tslm.errors import MissingFileError, UserError


def test_stated_options_pairs_each_option_with_its_value():
    words = ["a.txt", "--a=1", "--b+", "2", "--c", "-3.5", "-d=x=y", "--e"]
    assert stated_options(words) == [("--a", "1"), ("--b", "2"), ("--c", "-3.5"), ("-d", "x=y"), ("--e", "")]
    assert stated_options([]) == []


def test_flag_keys_are_the_dotted_keys_of_a_command_line():
    assert flag_keys(["--optimizer.lr=3", "--data.train_files+", "a.txt", "-c", "b.yaml"]) == {
        "optimizer.lr", "data.train_files", "config"}


def test_a_value_that_nests_too_deeply_is_left_to_the_parser():
    assert stated_values(["--optimizer.warmup_steps", "[" * 3000]) == {"optimizer.warmup_steps": "[" * 3000}


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


@pytest.mark.parametrize(("text", "sentence"), [
    ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)), "more than 1,"),
    ("a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{b: *a{n - 1}, c: *a{n - 1}}}\n" for n in range(1, 40)), "more than"),
    ("a: &a [*a]", "contain themselves"), ("a: &a {b: *a}", "contain themselves"), ("a: " + "[" * 100_000, "too deep"),
])
def test_a_configuration_that_grows_by_its_aliases_or_nests_deeply_is_refused(tmp_path, text, sentence):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"a\.yaml .*{sentence}"):
        read_yaml(tmp_path / "a.yaml")


def test_aliases_and_merged_keys_are_still_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {b: 1, c: 2}\nd: {<<: *a, c: 3}\ne: [*a, *a]\n")
    assert read_yaml(tmp_path / "a.yaml")["d"] == {"b": 1, "c": 3}


def test_a_shipped_configuration_is_found_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = str(config_folder() / "text.yaml")
    for words, expected in [
        (["fit", "--config", "configs/text.yaml", "--a=1"], ["fit", "--config", shipped, "--a=1"]),
        (["fit", "-c", "configs/text.yaml"], ["fit", "-c", shipped]),
        (["fit", "--config=configs/text.yaml"], ["fit", f"--config={shipped}"]),
    ]:
        found, (notice,) = find_shipped(words)
        assert found == expected
        assert notice == f"configs/text.yaml is not in this folder; the one that comes with tslm is used: {shipped}"
    for words in (["--config", "text.yaml"], ["--config", "configs/other.yaml"], ["--config", "a/configs/text.yaml"],
                  ["--name", "configs/text.yaml"], ["--name=configs/text.yaml"], ["configs/text.yaml"], ["--config"],
                  ["--config", shipped]):  # fmt: skip
        assert find_shipped(words) == (words, [])
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "text.yaml").write_text("name: mine\n")
    assert find_shipped(["--config", "configs/text.yaml"]) == (["--config", "configs/text.yaml"], [])
