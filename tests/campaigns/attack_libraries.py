"""Planted libraries: code that runs as soon as it is loaded, where the compiled C kernels are kept."""

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from tests.campaigns.attack_place import COMMANDS, Place
from tests.campaigns.campaign import Case

SOURCE = """int system(const char *);
__attribute__((constructor)) static void run(void) {{ system("touch {canary}"); }}"""


def plant(case: Case, place: Place, *, digest: bool = True) -> Path:
    """Replace every library in the cache folder by one that writes the canary; return the folder."""
    library = case.folder / "evil.so"
    if not library.exists():
        source = case.write("evil.c", SOURCE.format(canary=place.canary).encode())
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    folder = place.home / "tslm"
    assert list(folder.glob("*.so")), "the project has compiled no library"
    for path in folder.glob("*.so"):
        os.remove(path)
        shutil.copyfile(library, path)
        if digest:
            path.with_suffix(".sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())
    return folder


def use(case: Case, place: Place) -> None:
    """Run a command that computes with the C kernels."""
    command = case.rng.choice(["fit", "validate", "generate"])
    place.attack(command, [*COMMANDS[command], "--ckpt_path=last"])


def without_digest(case: Case, place: Place) -> None:
    """A library without a SHA-256 beside it."""
    for path in plant(case, place, digest=False).glob("*.sha256"):
        path.unlink()
    use(case, place)


def old_digest(case: Case, place: Place) -> None:
    """A library with the SHA-256 of the right one."""
    plant(case, place, digest=False)
    use(case, place)


def digest_of_another_form(case: Case, place: Place) -> None:
    """A SHA-256 in capital letters, or with a file name after it."""
    for path in plant(case, place).glob("*.sha256"):
        path.write_text(case.rng.choice([path.read_text().upper(), f"{path.read_text()}  {path.stem}.so\n"]))
    use(case, place)


def open_folder(case: Case, place: Place) -> None:
    """A folder that others, or the group, can write to, and both files replaced."""
    plant(case, place).chmod(case.rng.choice([0o777, 0o770, 0o702, 0o720]))
    use(case, place)


def open_files(case: Case, place: Place) -> None:
    """A folder that others can only read, with files that they can write to."""
    folder = plant(case, place)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o666 if path.suffix == ".sha256" else 0o777)
    use(case, place)


def open_digest(case: Case, place: Place) -> None:
    """The library alone, or its SHA-256 alone, is writable by others."""
    folder = plant(case, place)
    folder.chmod(0o755)
    for path in folder.glob(case.rng.choice(["*.so", "*.sha256"])):
        path.chmod(0o666)
    use(case, place)


def linked_files(case: Case, place: Place) -> None:
    """The library is a link to a file elsewhere."""
    for path in plant(case, place).glob("*.so"):
        shutil.move(path, place.tmp / path.name)
        path.symlink_to(place.tmp / path.name)
    use(case, place)


def another_owner(case: Case, place: Place) -> None:
    """A folder and files of another user."""
    plant(case, place)
    user = os.getuid() + 1
    with mock.patch("os.getuid", return_value=user):
        use(case, place)


def files_of_another_owner(case: Case, place: Place) -> None:
    """Files of another user in the user's own folder; without the right to give files away, files open to others."""
    folder = plant(case, place)
    folder.chmod(0o755)
    for path in folder.iterdir():
        if os.getuid() == 0:
            os.chown(path, 12345, 12345)
        else:
            path.chmod(0o777)
    use(case, place)


def linked_folder(case: Case, place: Place) -> None:
    """The folder is a link to another one."""
    folder = plant(case, place)
    folder.rename(place.tmp / "elsewhere")
    folder.symlink_to(place.tmp / "elsewhere")
    use(case, place)


def swapped_while_loading(case: Case, place: Place) -> None:
    """In a folder that others can write to, the right library and the planted one take turns."""
    right = {path.name: path.read_bytes() for path in (place.home / "tslm").iterdir()}
    folder = plant(case, place)
    planted = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.chmod(0o777)
    with swapping(folder, [right, planted]):
        use(case, place)


def unfinished(case: Case, place: Place) -> None:
    """A folder with a library, as an interrupted compilation of an earlier version has left it."""
    folder = plant(case, place)
    left = folder / ".new-evil"
    left.mkdir()
    for path in [*folder.glob("*.so"), *folder.glob("*.sha256")]:
        path.rename(left / path.name)
    use(case, place)


def in_the_project(case: Case, place: Place) -> None:
    """A cache folder in the working folder, while the variable that names it is empty."""
    shutil.copytree(plant(case, place), place.project / "tslm")
    shutil.rmtree(place.home / "tslm")
    use(case, place)


@contextmanager
def swapping(folder: Path, contents: list[dict[str, bytes]]) -> Iterator[None]:
    """Rename each of several sets of files into a folder, again and again."""
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for files in contents:
                for name, data in files.items():
                    (folder / f".{name}").write_bytes(data)
                    (folder / f".{name}").replace(folder / name)

    thread = threading.Thread(target=swap, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


LIBRARIES = [without_digest, old_digest, digest_of_another_form, open_folder, open_files, open_digest, linked_files,
             another_owner, files_of_another_owner, linked_folder, swapped_while_loading, unfinished, in_the_project]
