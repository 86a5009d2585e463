"""The C kernel's way into memory: compiled once, by whoever comes first, and done without where that fails."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tslm.generation import build

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
    path = build.build(torch.float32)
    written = path.stat().st_mtime_ns
    assert build.build(torch.float32) == path
    assert path.stat().st_mtime_ns == written
    assert _kept(tmp_path) == [path.name]
    assert build.load(torch.float32) is build.load(torch.float32) is not None


@needs_compiler
def test_several_at_once_leave_one_library(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(build.build, [torch.float32] * 3))
    assert [path.name for path in paths] == _kept(tmp_path)


@needs_compiler
def test_another_source_dtype_or_compiler_is_another_library(tmp_path, monkeypatch):
    names = {build._key(["cc"], build.FLAGS), build._key(["cc"], [*build.FLAGS, "-DBFLOAT16"]),
             build._key(["cc", "-O1"], build.FLAGS)}
    changed = [tmp_path / source.name for source in build.SOURCES]
    for source, copy in zip(build.SOURCES, changed, strict=True):
        copy.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(build, "SOURCES", changed)
    names.add(build._key(["cc"], build.FLAGS))
    monkeypatch.setattr(build, "_processor", lambda: "another")
    names.add(build._key(["cc"], build.FLAGS))
    assert len(names) == 5


@needs_compiler
@pytest.mark.parametrize(("compiler", "reason"), [
    ("no-such-compiler", "no C compiler: no-such-compiler is not found"), ("false", "false fails: exit code 1"),
    ("cc --no-such-option", "cc fails: .*error.*no-such-option")])
def test_without_a_compiler_there_is_one_warning_and_no_kernel(monkeypatch, recwarn, compiler, reason):
    monkeypatch.setenv("CC", compiler)
    with pytest.warns(UserWarning, match=rf"torch's operators, more slowly: the C kernel is missing \({reason}"):
        assert build.load(torch.float32) is None
    assert build.load(torch.float32) is None
    assert len(recwarn) == 0


@needs_compiler
def test_a_source_that_does_not_compile_is_told_by_its_first_error(tmp_path, monkeypatch):
    (tmp_path / "broken.c").write_text("int main(void) { return missing; }\n")
    monkeypatch.setattr(build, "SOURCES", [tmp_path / "broken.c"])
    with pytest.raises(build.BuildError, match=r"cc fails: .*broken\.c.*missing"):
        build.build(torch.float32)
    assert _kept(tmp_path) == []


@needs_compiler
def test_a_folder_that_cannot_be_written_leaves_no_kernel(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the C kernel is missing"):
        assert build.load(torch.float32) is None


def test_windows_has_no_kernel(monkeypatch):
    monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    with pytest.raises(build.BuildError, match="Windows"):
        build.build(torch.float32)
