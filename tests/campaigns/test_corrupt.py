import json
import os
import random
import re
import time

import pytest

from tests.campaigns.campaign import Case
from tests.campaigns.child import check_ending, in_child
from tests.campaigns.corrupt import judge, main
from tests.campaigns.damage import damage, replace_folder
from tests.campaigns.damaged_world import World, generate, tokenize
from tests.conftest import needs_compiler
from tslm import files
from tslm.fast.cpu import build
from tslm.tokenizer import serialization


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return World.of(tmp_path_factory.mktemp("corrupt"))


@pytest.fixture
def world(made, monkeypatch):
    """The folder that all campaigns of this file damage, instead of one for each."""
    monkeypatch.setattr(World, "of", lambda folder: made)
    return made


def lines(capsys):
    out, err = capsys.readouterr()
    return [json.loads(line) for line in out.splitlines()], err


# One quick case of each family, with different damage.
@pytest.mark.parametrize(("family", "number"), [
    ("checkpoint", 6), ("token_file", 6), ("sidecar", 5), ("vocabulary", 7), ("merges", 3), ("configuration", 0),
    ("cached_text", 2), ("library", 3), ("run_directory", 1), ("text_form", 1),
    ("full_disk_checkpoint", 2), ("full_disk_tokenizing", 7),
])
def test_a_short_campaign_finds_that_damage_is_detected_or_harmless(world, capsys, family, number):
    assert main(["--family", family, "--case", str(number)]) == 0
    (line,), err = lines(capsys)
    assert err == ""
    assert (line["name"], line["tried"], line["failed"]) == (family, 1, 0)


def test_a_tokenizer_that_is_not_checked_is_found(world, monkeypatch):
    monkeypatch.setattr(serialization, "check_merges", lambda tokenizer, place: None)
    world.fresh()
    config = json.loads((world.path / "tokenizer" / "tokenizer_config.json").read_text())
    monkeypatch.setattr(serialization.Tokenizer, "hash", config["tokenizer_hash"])
    path = world.path / "tokenizer" / "merges.txt"
    path.write_text("#version: 0.2\n")
    with pytest.raises(AssertionError, match="another result without a word"):
        judge(Case("merges", 0, 0, world.folder), world, path, tokenize)


@needs_compiler
def test_a_library_that_is_not_checked_is_found(world, monkeypatch):
    monkeypatch.setattr(build, "_is_intact", lambda path, digest: True)
    world.fresh()
    for path in world.files("kernels/tslm/*.so"):
        path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(AssertionError, match="ended with -"):  # a signal
        judge(Case("library", 0, 0, world.folder), world, path, generate)


def test_a_half_written_file_is_found(world, capsys, monkeypatch):
    monkeypatch.setattr(files.os, "replace", lambda *paths: None)
    monkeypatch.setattr(files, "sync_folder", lambda path: None)
    assert main(["--family", "full_disk_tokenizing", "--case", "0"]) == 1


@pytest.mark.parametrize(("use", "part"), [
    (lambda: time.sleep(60), "hangs"), (lambda: os.kill(os.getpid(), 9), "ended with -9"),
    (lambda: {}["x"], "ended with 1"), (lambda: os.stat("elsewhere"), "no sentence names"),
])
def test_a_hang_a_signal_a_traceback_and_a_sentence_about_something_else_are_failures(tmp_path, use, part):
    with pytest.raises(AssertionError, match=part):
        check_ending(in_child(use, tmp_path, limit=0.5 if part == "hangs" else 60.0), ["a.txt"])


def test_damage_changes_the_file_and_keeps_its_times(tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a.json").write_text('{"a": 1,\n"b": 22}\n')
    (tmp_path / "copy" / "b.json").hardlink_to(tmp_path / "copy" / "a.json")
    os.utime(tmp_path / "copy" / "a.json", ns=(10**18, 10**18 + 1))
    kinds = set()
    for seed in range(400):
        replace_folder(tmp_path / "world", tmp_path / "copy")
        path = tmp_path / "world" / "a.json"
        assert path.samefile(path.with_name("b.json"))
        kinds.add(damage(random.Random(seed), path, []))
        if os.path.lexists(path):
            assert path.lstat().st_mtime_ns == 10**18 + 1
        assert not path.is_file() or path.read_bytes() != (tmp_path / "copy" / "a.json").read_bytes()
    assert len(kinds) >= 17


def test_the_full_campaign_has_a_thousand_damages(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    counts = [int(count) for count in re.findall(r"[a-z]\s+(\d+)", capsys.readouterr().out.split("per family")[1])]
    assert (sum(counts[:10]), counts[10:]) == (1120, [20, 20])
