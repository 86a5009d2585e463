"""The place of an attack: a project with its run, folders outside it, and a watch over what a command does there."""

import copyreg
import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.campaigns.campaign import Case
from tests.campaigns.forked import Outcome, run_forked
from tests.campaigns.project import fresh_project
from tslm import __main__
from tslm.errors import UserError
from tslm.training.runs import load_model

PLANTED = """
import pathlib
pathlib.Path({canary!r}).write_text("executed")
def evil(*arguments, **named):
    pathlib.Path({canary!r}).write_text("executed")
class Evil:
    def __init__(self, *arguments, **named):
        evil()
    def __setstate__(self, state):
        evil()
Logger = Callback = Accelerator = Profiler = Strategy = Evil
"""
COMMANDS = {
    "fit": ["--data.cache_dir=c", "--trainer.max_steps=2", "--trainer.limit_val_batches=1",
            "--trainer.enable_progress_bar=false"],
    "validate": ["--data.cache_dir=c", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false"],
    "test": ["--data.cache_dir=c", "--trainer.limit_test_batches=1", "--trainer.enable_progress_bar=false"],
    "predict": ["--trainer.enable_progress_bar=false", "--generation.max_new_tokens=1"],
    "generate": ["--max_new_tokens=1"],
    "load_model": [],
}
COMMAND_LINES = tuple(name for name in COMMANDS if name != "load_model")  # which is a function of the library
COMPILING = {"cc", "gcc", "c++", "g++", "lscpu", "uname"}  # programs that are started without an attack
SETS = ("PL_", "KINETO", "TORCH", "LIGHTNING", "CUDA", "NCCL", "TRITON", "TF_", "KMP_", "MASTER_",
        "LOCAL_RANK", "NODE_RANK")  # prefixes of environment variables that libraries set
NOTICES = ("the C kernels are missing", "without its substitute")  # of functions that run, but slower
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn", "subprocess.Popen"}
CHANGES = {"os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.chmod"}


class Place:
    """A fresh project, and beside it the folder `outside`, which no command may change.

    Attributes:
        project: the working folder; its run is `lightning_logs/version_0`, its cache `c`.
        outside: holds the module `planted`, whose import writes `canary`, and other files.
        home: the user's cache folder.
    """

    def __init__(self, case: Case) -> None:
        root = case.folder / "attacked"
        shutil.rmtree(root, ignore_errors=True)
        self.project = fresh_project(case.folder)
        self.run = self.project / "lightning_logs" / "version_0"
        self.checkpoints = self.run / "checkpoints"
        self.outside, self.home, self.tmp = root / "outside", root / "home", root / "tmp"
        self.canary = self.outside / "canary"
        for folder in (self.outside / "planted", self.home, self.tmp, self.outside / "folder"):
            folder.mkdir(parents=True)
        for name in ("__init__", "inner"):
            (self.outside / "planted" / f"{name}.py").write_text(PLANTED.format(canary=str(self.canary)))
        for name in ("precious.txt", ".precious.ckpt.new", ".precious.tmp", "folder/.a.json.1.new"):
            (self.outside / name).write_text("precious")
        if (case.folder / "home").exists():  # the compiled kernels of the project
            shutil.copytree(case.folder / "home", self.home, dirs_exist_ok=True)
        self.own = [self.project / "lightning_logs", self.project / "c", self.project / ".cache", self.home, self.tmp]

    def attack(self, command: str, options: Sequence[str], **limits: Any) -> Outcome:
        """Run a command under watch, and raise AssertionError if it did anything that it may not do."""
        before = self.listing()
        outcome = run_forked(lambda: self._watch(command, list(options)), self.project, **limits)
        text = outcome.text[-2000:]
        assert not self.canary.exists(), f"executed: {text!a}"
        assert outcome.code in (0, 2), f"exit code {outcome.code}: {text!a}"
        assert "Traceback" not in outcome.text, text
        sentences = [line for line in outcome.text.splitlines() if line.rpartition("\r")[2].startswith("tslm: ")
                     and not any(notice in line for notice in NOTICES)]
        assert len(sentences) == (outcome.code == 2), f"not one sentence: {text!a}"
        after = self.listing()
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        assert not changed, f"changed outside: {sorted(changed)}: {text!a}"
        return outcome

    def listing(self) -> dict[str, tuple[int, str]]:
        """Return mode and content of every file outside the run and cache folders."""
        found: dict[str, tuple[int, str]] = {}
        for top in (self.project, self.outside.parent):
            for folder, folders, files in os.walk(top):
                folders[:] = [name for name in folders if Path(folder, name) not in self.own]
                for path in [Path(folder, name) for name in [*folders, *files]]:
                    mode, content = path.lstat().st_mode, ""
                    if stat.S_ISLNK(mode):
                        content = os.readlink(path)
                    elif stat.S_ISREG(mode):
                        content = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[str(path)] = mode, content
        return found

    def _watch(self, command: str, options: list[str]) -> int:
        """Run a command in this process, which was forked for it; a forbidden event makes the exit code 99."""
        events: list[str] = []
        os.environ |= {"XDG_CACHE_HOME": str(self.home), "TMPDIR": str(self.tmp), "HOME": str(self.home)}
        tempfile.tempdir = None
        sys.path.insert(0, str(self.outside))
        sys.dont_write_bytecode = True
        copyreg.add_extension("posix", "system", 240)  # type: ignore[arg-type]
        environment = dict(os.environ)
        sys.addaudithook(self._hook(events))
        code = self._call(command, options)
        sys.stdout.flush()
        events += [f"environment {name}" for name in environment.keys() | os.environ.keys()
                   if environment.get(name) != os.environ.get(name) and not name.startswith(SETS)]
        events += [f"module {name}" for name in sys.modules if name.partition(".")[0] == "planted"]
        for event in events:
            print(f"forbidden: {event}", file=sys.stderr)
        return 99 if events else code

    @staticmethod
    def _call(command: str, options: list[str]) -> int:
        if command != "load_model":
            sys.argv = ["tslm", command, *options]
            return __main__.run()
        try:
            load_model(options[-1].removeprefix("--ckpt_path="))
            return 0
        except UserError as error:
            print(f"tslm: {error}", file=sys.stderr)
            return 2

    def _hook(self, events: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
        allowed = [os.path.realpath(path) for path in self.own]

        def outside(path: object) -> bool:
            if not isinstance(path, str | bytes):
                return False
            folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
            place = os.path.join(os.path.realpath(folder), name)
            return not place.startswith(("/dev/", "/proc/")) and not any(
                place == each or place.startswith(f"{each}/") for each in allowed)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in STARTS:
                if event != "subprocess.Popen" or os.path.basename(str(arguments[0])) not in COMPILING:
                    events.append(f"{event} {arguments!r:.200}")
            elif event == "import" and str(arguments[0]).partition(".")[0] == "planted":
                events.append(f"import {arguments[0]}")
            elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
                if outside(arguments[0]):
                    events.append(f"open {arguments[0]!r}")
            elif event in CHANGES and -1 in arguments:  # without a folder's handle
                events.extend(f"{event} {path!r}" for path in arguments if outside(path))

        return hook
