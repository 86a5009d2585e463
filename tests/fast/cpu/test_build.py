"""Compiling the C kernels: once, into the cache folder, and one sentence where that fails."""

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.conftest import needs_compiler
from tslm.fast import door
from tslm.fast.cpu import build, kernels
from tslm.fast.door import DisagreementWarning, UnavailableError

SOURCES = kernels.SOURCES


@pytest.fixture
def small(tmp_path):
    """A small source: what is tested is the folder, and the kernels take a second to compile."""
    path = tmp_path / "small.c"
    path.write_text("int table[4096] = {1, 2, 3};\nint answer(void) { return 42; }\n", encoding="utf-8")
    return (path,)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    build.load.cache_clear()
    yield
    build.load.cache_clear()


def _kept(tmp_path):
    """The libraries in the cache, each of which has its digest beside it; nothing else is there."""
    files = {path.name for path in (tmp_path / "cache" / "tslm").iterdir()}
    libraries = sorted(name for name in files if name.endswith(".so"))
    assert files == {*libraries, *(name.replace(".so", ".sha256") for name in libraries)}
    return libraries


@needs_compiler
def test_a_library_is_compiled_once_and_kept(small, tmp_path):
    path = build.build(small, torch.float32)
    written = path.stat().st_mtime_ns
    assert build.build(small, torch.float32) == path
    assert path.stat().st_mtime_ns == written
    assert _kept(tmp_path) == [path.name]
    assert build.load(small, torch.float32) is build.load(small, torch.float32)


@needs_compiler
def test_code_without_vectors_needs_neither_openmp_nor_march_native(small, tmp_path, monkeypatch):
    """As with Apple's compilers, which know neither of the two, or only the second."""
    compiler = tmp_path / "compiler"
    refused = 'case " $* " in *" -fopenmp "*|*" -march=native "*) echo "error: unsupported option" >&2; exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{refused}\nexec cc "$@"\n', encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert build.load(small).answer() == 42
    with pytest.raises(UnavailableError, match="unsupported option"):
        build.load(small, torch.float32)


@needs_compiler
def test_concurrent_builds_leave_one_library(small, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(build.build, [small] * 3, [torch.float32] * 3))
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
    ("cc --no-such-option", "cc fails: .*error: .*no-such-option"),
    ("cc '", "CC is \"cc '\", which is no command line .No closing quotation.")])
def test_without_a_working_compiler_the_reason_is_given(monkeypatch, compiler, reason):
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(UnavailableError, match=rf"the C kernels are missing \({reason}"):
        build.load(SOURCES, torch.float32)


@needs_compiler
def test_an_empty_compiler_variable_means_the_default(monkeypatch):
    monkeypatch.setenv("CC", " ")
    assert build.load(SOURCES, torch.float32) is not None


@needs_compiler
def test_ctrl_c_in_the_terminal_does_not_reach_the_compiler(small, tmp_path, monkeypatch):
    script = tmp_path / "cc"
    tell = f"{sys.executable} -c 'import os; print(os.getpgrp())' >> {tmp_path}/groups"
    script.write_text(f'#!/bin/sh\n{tell}\nexec cc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    assert build.build(small, torch.float32).exists()
    groups = (tmp_path / "groups").read_text().split()
    assert len(groups) == 2  # one call for the version, one to compile
    assert str(os.getpgrp()) not in groups


@needs_compiler
def test_a_compiler_error_is_named_by_its_first_line(tmp_path, monkeypatch):
    (tmp_path / "broken.c").write_text("int main(void) { return missing; }\n")
    with pytest.raises(UnavailableError, match=r"cc fails: .*broken\.c.*missing"):
        build.build((tmp_path / "broken.c",), torch.float32)
    assert _kept(tmp_path) == []


@pytest.fixture
def fresh_warnings():
    door.forget()
    yield
    door.forget()


@needs_compiler
@pytest.mark.parametrize("refuse", ["folder", "write", "load"])
def test_a_library_that_cannot_be_kept_is_compiled_for_this_process(tmp_path, monkeypatch, fresh_warnings, refuse):
    """As in a read-only home, on a full disk, and where nothing may be executed from the home folder."""
    if refuse == "folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    elif refuse == "write":
        (tmp_path / "cache" / "tslm").mkdir(mode=0o700, parents=True)
        monkeypatch.setattr(build, "atomic_write", lambda path, write=build.atomic_write:
                            write(path if "cache" not in path.parts else tmp_path / "missing" / path.name))
    else:
        monkeypatch.setattr(build.ctypes, "CDLL", lambda name, load=build.ctypes.CDLL:
                            load(name if "cache" not in name.split("/") else __file__))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    sources = [tmp_path / f"{number}.c" for number in range(2)]
    for number, source in enumerate(sources):
        source.write_text(f"int answer(void) {{ return {number}; }}\n")
    with pytest.warns(DisagreementWarning, match="compiled again by each command, because they cannot be kept") as seen:
        libraries = [build.load((source,)) for source in sources]
    assert len(seen) == 1
    assert [library.answer() for library in libraries] == [0, 1]
    assert not list((tmp_path / "temporary").iterdir())


@needs_compiler
def test_without_any_folder_to_write_to_the_kernel_is_unavailable(small, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(UnavailableError, match="the C kernels are missing"):
        build.load(small, torch.float32)


@needs_compiler
@pytest.mark.parametrize(("script", "reason"), [
    ("exit 0", "makes no library"), ("head -c 99 /dev/urandom; exit 0", "makes no library"),
    ('for each; do [ "$before" = -o ] && echo "no library" > "$each"; before=$each; done', "file too short"),
    ("echo error: in /tmp/$$.s >&2; exit 1", r"error: in /tmp/\d+\.s"), ("sleep 9", "hangs"),
    ('[ "$1" = --version ] || sleep 9', "hangs")])
def test_a_compiler_that_fails_in_its_own_way_is_one_warning(tmp_path, monkeypatch, fresh_warnings, script, reason):
    """Although the names of temporary files differ; and a compiler that hangs is not waited for again."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(build, "_TIMEOUT", 0.5)
    monkeypatch.setattr(build, "_TIMEOUT_VERSION", 0.5)
    runs, run = [], build.subprocess.run
    monkeypatch.setattr(build.subprocess, "run", lambda *words, **named: [runs.append(words), run(*words, **named)][1])

    def fails(name):
        (tmp_path / name).write_text("\n")
        with pytest.raises(UnavailableError) as error:
            build.load((tmp_path / name,), torch.float32)
        door.warn_unavailable(error.value)

    with pytest.warns(DisagreementWarning, match=f"the C kernels are missing .*{reason}") as seen:
        [*map(fails, ("a.c", "b.c", "c.c"))]
    assert len(seen) == 1
    if reason == "hangs":
        assert len(runs) == (2 if "version" in script else 1)


def test_windows_has_no_kernels(monkeypatch):
    monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    with pytest.raises(UnavailableError, match="Windows"):
        build.build(SOURCES, torch.float32)


@needs_compiler
@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:9000] + b"\xff" * 64 + data[9064:],
    lambda data: data + b"\0", lambda data: b"not a library"])
def test_a_damaged_library_is_compiled_again_and_never_loaded(small, tmp_path, damage):
    path = build.build(small, torch.float32)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert build.load(small, torch.float32) is not None  # loading a damaged one would end the process
    assert path.read_bytes() != damage(whole)
    assert _kept(tmp_path) == [path.name]


@needs_compiler
def test_a_named_pipe_in_place_of_a_library_or_its_digest_is_replaced(small):
    path = build.build(small, torch.float32)
    for each in (path, path.with_suffix(".sha256")):
        each.unlink()
        os.mkfifo(each)
        assert build.build(small, torch.float32) == path
        assert each.is_file()


@needs_compiler
@pytest.mark.parametrize("digest", [None, b"", b"0" * 64, b"\xff\xfe"])
def test_a_library_without_its_digest_is_compiled_again(small, tmp_path, digest):
    path = build.build(small, torch.float32)
    path.write_bytes(b"planted")
    if digest is None:
        path.with_suffix(".sha256").unlink()
    else:
        path.with_suffix(".sha256").write_bytes(digest)
    assert build.build(small, torch.float32).read_bytes() != b"planted"


@needs_compiler
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_cache_folder_that_others_can_write_is_refused(tmp_path, mode):
    folder = tmp_path / "cache" / "tslm"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(UnavailableError, match=r"other users can write to .*XDG_CACHE_HOME"):
        build.load(SOURCES, torch.float32)
    assert list(folder.iterdir()) == []


@needs_compiler
def test_a_cache_folder_that_others_can_replace_is_refused(small, tmp_path):
    parent = tmp_path / "cache"
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(UnavailableError, match=r"all users can replace folders in .*chmod o-w"):
        build.build(small, torch.float32)
    assert list((parent / "tslm").iterdir()) == []
    parent.chmod(0o1777)
    assert build.build(small, torch.float32).is_file()


@needs_compiler
def test_a_linked_cache_folder_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "tslm").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnavailableError, match="other users can write to"):
        build.load(SOURCES, torch.float32)


@needs_compiler
def test_a_new_cache_folder_is_private(small, tmp_path):
    assert build.build(small, torch.float32).parent.stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.parametrize(("suffix", "mode"), [(".so", 0o720), (".sha256", None)])
def test_a_library_that_others_can_write_or_that_is_a_link_is_compiled_again(small, tmp_path, suffix, mode):
    path = build.build(small, torch.float32)
    path.parent.chmod(0o755)  # others can reach the files
    planted = path.with_suffix(suffix)
    if mode is None:
        planted.rename(tmp_path / "elsewhere")
        planted.symlink_to(tmp_path / "elsewhere")
    else:
        planted.chmod(mode)
    before = path.stat().st_ino
    assert build.build(small, torch.float32) == path
    assert path.stat().st_ino != before
    assert [each.lstat().st_mode & 0o777 for each in (path, path.with_suffix(".sha256"))] == [0o700, 0o700]
    assert build.build(small, torch.float32).stat().st_ino == path.stat().st_ino
