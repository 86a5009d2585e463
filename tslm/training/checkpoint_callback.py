"""Checkpoints during training: a Lightning plugin that writes them atomically, and a callback that keeps the newest."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import lightning
import lightning.pytorch as pl
from lightning.pytorch.plugins.io import CheckpointIO

from tslm.errors import UserError
from tslm.files import fcntl, is_locked, lock, remove_leftovers
from tslm.loops.lightning import StepCallback
from tslm.training.checkpoint import check_plain, is_intact, read_checkpoint
from tslm.training.run_dirs import run_dir
from tslm.training.runs import CHECKPOINTS, FOLDER_FILE, run_of
from tslm.training.writing import link_atomically, replace_atomically, write_atomically


class AtomicCheckpointIO(CheckpointIO):
    """Writes Lightning's checkpoint files completely or not at all, and reads them without running code.

    Lightning itself builds the file in memory, writes it to the system's temporary folder and moves it. Across file
    systems this is a copy, which a crash can truncate.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike[str],
                        storage_options: Any = None) -> None:
        """Write a checkpoint atomically.

        Raises:
            UserError: it could not be loaded again without running code.
        """
        for name, part in checkpoint.items():
            check_plain(part, name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), checkpoint)

    def load_checkpoint(self, path: str | os.PathLike[str], map_location: Any = None,
                        weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint on the CPU; it never runs code, whatever `weights_only` is.

        Lightning would translate a file by the version that it states. Ours need no translation.
        """
        return read_checkpoint(path) | {"pytorch-lightning_version": lightning.__version__}

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Checkpoints(StepCallback, pl.callbacks.Checkpoint):
    """Keeps the newest checkpoints. `last` names the newest one, and `best` the one with the lowest validation loss.

    A resumed run has a folder of its own. With its first checkpoint it links there to the best one of the run that it
    continues.

    Args:
        dirpath: Folder for the checkpoints; unless given, `checkpoints` in the run directory.
        keep: How many of the newest `step-*.ckpt` to keep besides the best one. With two, one is left if a disk or a
            crash damages the newest.

    Raises:
        UserError: keep is below 1.
    """

    def __init__(self, dirpath: str | None = None, keep: int = 2) -> None:
        if keep < 1:
            raise UserError(f"checkpoint.keep is {keep}: give --checkpoint.keep at least 1")
        self.dirpath = dirpath
        self.keep = keep
        self.run = Path()
        self.folder: Path | None = None
        self.best_loss = math.inf
        self.best_step: int | None = None
        self._best_file: Path | None = None  # in the folder of an earlier run until the first checkpoint is saved
        self._restored: dict[str, Any] = {}
        self._checked = False  # whether the states of callbacks and optimizers can be saved
        self._claim: int | None = None  # the handle that holds the lock of a folder that the user chose
        self._newest: tuple[int, Path] | None = None  # the step that was saved last, or resumed from, and its file

    @property
    def newest(self) -> Path | None:
        """The checkpoint that this run has saved last, or from which it was resumed, or None."""
        return self._newest[1] if self._newest else None

    @property
    def last_path(self) -> Path | None:
        """The newest checkpoint, or None if there is none yet."""
        path = self.folder / "last.ckpt" if self.folder else None
        return path if path and path.exists() else None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Choose the folder, the same on every process, and remove what killed runs left half written."""
        if stage == "fit":
            self.run = Path(trainer.strategy.broadcast(str(run_dir(trainer))))
            self.folder = Path(self.dirpath) if self.dirpath else self.run / CHECKPOINTS
            if trainer.is_global_zero:
                self._claim_folder()
                runs = self.run.parent
                for folder in [self.folder, *runs.glob("*"), *runs.glob(f"*/{CHECKPOINTS}")]:
                    # A downloaded run may link to any folder.
                    if folder == self.folder or folder.resolve().is_relative_to(runs.resolve()):
                        remove_leftovers(folder)

    def _claim_folder(self) -> None:
        """Lock the folder that the user chose, so that no other run writes to it, and check that it is writable."""
        if not self.dirpath:
            return
        folder = Path(self.dirpath)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"checkpoint.dirpath is {folder}, where nothing can be written ({error.strerror}): give "
                            "--checkpoint.dirpath another folder, or leave it out") from error
        if fcntl is not None and self._claim is None:
            if is_locked(folder):
                raise UserError(f"checkpoint.dirpath is {folder}, where another run writes its checkpoints: give "
                                "--checkpoint.dirpath another folder, or leave it out")
            self._claim = os.open(folder, os.O_RDONLY)
            lock(self._claim, wait=False)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let other runs write to the folder."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let other runs write to the folder."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the best checkpoint of a resumed run, and remember the resumed one: its validation may be due."""
        if trainer.ckpt_path:
            path = Path(trainer.ckpt_path)
            self._newest = trainer.global_step, path
            if trainer.is_global_zero:
                for folder in {path.parent, run_of(path)}:  # `setup` has not seen a run that was moved elsewhere
                    remove_leftovers(folder)
            self._best_file = trainer.strategy.broadcast(self._restored_best(path))
            if self._best_file is not None:
                self.best_loss, self.best_step = self._restored["best_loss"], self._restored["best_step"]

    def _restored_best(self, resumed: Path) -> Path | None:
        """Return the file of the best step that the resumed checkpoint knows, if it still exists.

        The folder of the resumed checkpoint comes first, because a run directory may have been moved.
        """
        step = self._restored.get("best_step")
        if step is None:
            return None
        for folder in (resumed.parent, Path(self._restored["folder"])):
            for path in (folder / "best.ckpt", folder / f"step-{step:08d}.ckpt"):
                if is_intact(path) and read_checkpoint(path, mmap=True)["global_step"] == step:
                    return path.absolute()
        return None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Point `best` to the checkpoint of this step if its loss is the lowest so far."""
        loss = getattr(pl_module, "figures", {}).get("loss", math.nan)  # `callback_metrics` has float32 only
        if self._newest is None or self._newest[0] != trainer.global_step or not loss < self.best_loss:
            return
        self.best_loss, (self.best_step, self._best_file) = loss, self._newest
        if trainer.is_global_zero:
            self._name_best()

    def _name_best(self) -> None:
        """Make `best.ckpt` in this run's folder another name of the best checkpoint."""
        if self._best_file is None:
            return
        assert self.folder is not None
        best = (self.folder / "best.ckpt").absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            link_atomically(self._best_file, best)
            self._best_file = best
        except FileNotFoundError:  # the earlier run has been deleted
            self.best_loss, self.best_step, self._best_file = math.inf, None, None

    def on_step_log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Check at the first report that what callbacks and optimizers keep can be saved; later, more would be lost.

        Raises:
            UserError: it cannot, or the state of a callback is no dictionary.
        """
        if not self._checked:
            self._checked = True
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                state: object = callback.state_dict()
                name = f"callbacks.{type(callback).__name__}"
                if not isinstance(state, dict):
                    raise UserError(f"{name} has a state_dict() that returns a {type(state).__name__}: let it return a "
                                    "dictionary")
                check_plain(state, name)
            for optimizer in trainer.optimizers:
                check_plain(optimizer.state_dict(), "the state of the optimizer")

    def on_step_save(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: int) -> None:
        """Write `step-N.ckpt`, point `last` to it, and delete the oldest."""
        assert self.folder is not None
        path = self.folder / f"step-{step:08d}.ckpt"
        for logger in trainer.loggers:
            logger.save()  # because a run resumed from this checkpoint does not report earlier steps again
        trainer.save_checkpoint(path)
        self._newest = step, path
        if trainer.is_global_zero:
            if self.dirpath:
                self.run.mkdir(parents=True, exist_ok=True)
                text = f"{self.folder.resolve()}\n"
                replace_atomically(self.run / FOLDER_FILE, lambda file: file.write(text.encode()))
            link_atomically(path, self.folder / "last.ckpt")
            self._name_best()
            for old in sorted(self.folder.glob("step-*.ckpt"))[: -self.keep]:
                if old != path:  # an older run may have left higher numbers in a folder that the user chose
                    old.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the best loss, its step, and the folder of its checkpoint."""
        folder = self.folder if self._best_file is None else self._best_file.parent
        return {"best_loss": self.best_loss, "best_step": self.best_step, "folder": str(folder)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the training starts, when the resumed checkpoint is known."""
        self._restored = state_dict
