"""Files are complete or absent, also when several threads write one of them at the same time."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tslm import files
from tslm.errors import UserError
from tslm.files import atomic_write, check_outputs, remove_leftovers, temporary_name


def test_threads_that_write_one_file_at_once_leave_one_whole_content(tmp_path):
    path, contents = tmp_path / "a.bin", [bytes([65 + n]) * 300_000 for n in range(4)]

    def write(content):
        for _ in range(5):
            with atomic_write(path) as file:
                for start in range(0, len(content), 1000):
                    file.write(content[start : start + 1000])
            assert path.read_bytes() in contents

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, contents))
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_error_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_leftover_of_any_file_is_removed_but_not_the_file_that_is_being_written(tmp_path):
    for name in (".kernel-1.so.99.new", ".ids.bin.99.new", ".of-the-user.new"):
        (tmp_path / name).touch()
    with atomic_write(tmp_path / "a.bin"):
        remove_leftovers(tmp_path)
        assert len([*tmp_path.glob(".a.bin.*.new")]) == 1
    assert sorted(os.listdir(tmp_path)) == [".of-the-user.new", "a.bin"]


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path, monkeypatch):
    precious, temporary = tmp_path / "precious.txt", tmp_path / ".a.json.7.new"
    precious.write_text("precious")
    temporary.symlink_to(precious)
    assert len({temporary_name(temporary) for _ in range(100)}) == 100
    monkeypatch.setattr(files, "temporary_name", lambda path: temporary)
    with pytest.raises(FileExistsError), atomic_write(tmp_path / "a.json") as file:
        file.write(b"new")
    assert precious.read_text() == "precious"
    assert not (tmp_path / "a.json").exists()


def test_a_device_that_leads_to_a_regular_file_is_no_output(tmp_path):
    with (tmp_path / "out.txt").open("w") as file:
        for name in (f"/dev/fd/{file.fileno()}", f"/proc/self/fd/{file.fileno()}"):
            with pytest.raises(UserError, match=f"the output {name} is no regular file; give the path of a file"):
                check_outputs([name])
    check_outputs([tmp_path / "out.txt"])
