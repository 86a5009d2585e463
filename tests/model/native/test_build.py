"""The way of C kernels into memory: compiled once, by whoever comes first, and done without where that fails."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tslm.model.native import build, functions

SOURCES, WHAT = functions.SOURCES, "the model is computed"
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="without a C compiler there is no kernel")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    build.load.cache_clear()
    yield
    build.load.cache_clear()


def _kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache" / "tslm").iterdir())


@needs_compiler
def test_it_is_compiled_once_and_kept(tmp_path):
    path = build.build(SOURCES, torch.float32)
    written = path.stat().st_mtime_ns
    assert build.build(SOURCES, torch.float32) == path
    assert path.stat().st_mtime_ns == written
    assert _kept(tmp_path) == [path.name]
    assert build.load(SOURCES, torch.float32, WHAT) is build.load(SOURCES, torch.float32, WHAT) is not None


@needs_compiler
def test_several_at_once_leave_one_library(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(build.build, [SOURCES] * 3, [torch.float32] * 3))
    assert [path.name for path in paths] == _kept(tmp_path)


@needs_compiler
def test_another_source_dtype_or_compiler_is_another_library(tmp_path, monkeypatch):
    keys = {build._key(SOURCES, ["cc"], build.FLAGS), build._key(SOURCES, ["cc"], [*build.FLAGS, "-DBFLOAT16"]),
            build._key(SOURCES, ["cc", "-O1"], build.FLAGS)}
    changed = tuple(tmp_path / source.name for source in SOURCES)
    for source, copy in zip(SOURCES, changed, strict=True):
        copy.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    keys.add(build._key(changed, ["cc"], build.FLAGS))
    header = tmp_path / build.HEADER.name
    header.write_text(build.HEADER.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(build, "HEADER", header)
    keys.add(build._key(SOURCES, ["cc"], build.FLAGS))
    monkeypatch.setattr(build, "_processor", lambda: "another")
    keys.add(build._key(SOURCES, ["cc"], build.FLAGS))
    assert len(keys) == 6


@needs_compiler
@pytest.mark.parametrize(("compiler", "reason"), [
    ("no-such-compiler", "no C compiler: no-such-compiler is not found"), ("false", "false fails: exit code 1"),
    ("cc --no-such-option", "cc fails: .*error.*no-such-option")])
def test_without_a_compiler_there_is_one_warning_and_no_kernel(monkeypatch, recwarn, compiler, reason):
    monkeypatch.setenv("CC", compiler)
    with pytest.warns(UserWarning, match=rf"is computed by torch's operators, .* the C kernel is missing \({reason}"):
        assert build.load(SOURCES, torch.float32, WHAT) is None
    assert build.load(SOURCES, torch.float32, WHAT) is None
    assert len(recwarn) == 0


@needs_compiler
def test_ctrl_c_in_the_terminal_does_not_reach_the_compiler(tmp_path, monkeypatch):
    script = tmp_path / "cc"
    tell = f"{sys.executable} -c 'import os; print(os.getpgrp())' >> {tmp_path}/groups"
    script.write_text(f'#!/bin/sh\n{tell}\nexec cc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert build.build(SOURCES, torch.float32).exists()
    groups = (tmp_path / "groups").read_text().split()
    assert len(groups) == 2  # it is asked for its version, and compiles
    assert str(os.getpgrp()) not in groups


@needs_compiler
def test_a_source_that_does_not_compile_is_told_by_its_first_error(tmp_path, monkeypatch):
    (tmp_path / "broken.c").write_text("int main(void) { return missing; }\n")
    with pytest.raises(build.BuildError, match=r"cc fails: .*broken\.c.*missing"):
        build.build((tmp_path / "broken.c",), torch.float32)
    assert _kept(tmp_path) == []


@needs_compiler
def test_a_folder_that_cannot_be_written_leaves_no_kernel(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the C kernel is missing"):
        assert build.load(SOURCES, torch.float32, WHAT) is None


def test_windows_has_no_kernel(monkeypatch):
    monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    with pytest.raises(build.BuildError, match="Windows"):
        build.build(SOURCES, torch.float32)
