"""`fit`, `validate`, `test` and `predict`: LightningCLI with our classes, its errors, and what follows a command."""

from __future__ import annotations

import re
import traceback
import warnings
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from tslm.commands.explain import refused_class
from tslm.commands.options import is_stated
from tslm.commands.parsed import ParsedCommandLine
from tslm.errors import UserError
from tslm.loops.lightning import report_ended_processes
from tslm.model.own_classes import failed_line
from tslm.tokenizer.serialization import tokenizer_from_texts
from tslm.training.lightning_features import quieten_lightning
from tslm.training.runs import run_of
from tslm.training.stories import print_predictions, write_predictions
from tslm.training.trainer import StepTrainer

HARMLESS = (  # regular expressions of Lightning's warnings that a user can do nothing about
    "LightningCLI's args parameter is intended",
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    "The `.*dataloader` does not have many workers",
    "Be aware that when using `ckpt_path`, .*: \\['Checkpoints'\\]",  # a trial saves nothing
    "It is recommended to use `self.log\\(.*sync_dist=True",  # the figures are those of all processes
)


def main(argv: list[str] | None = None, began: float | None = None) -> None:
    """Run one of the four commands.

    Args:
        argv: arguments from the command on; None takes the process's own.
        began: when the command began, by time.perf_counter, for a budget in minutes; now, unless given.

    Raises:
        UserError: an option is wrong, or Lightning or one of its callbacks refuses a combination of options.
        SystemExit: with code 130 if Ctrl-C ended a training.
    """
    quieten_lightning()
    report_ended_processes()
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    try:
        command_line = CommandLine(argv, began)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except UserError:
        raise
    except Exception as error:  # for instance EarlyStopping's, about a monitor that does not exist
        if (line := failed_line(error)) is not None:  # of a callback, an optimizer or a layer of the user's own
            text = " ".join(str(error).split())[:600]
            raise UserError(f"{line}: {type(error).__name__}: {text}; TSLM_TRACEBACK=1 shows all") from error
        part = part_of_lightning(error)
        if part is None:
            raise
        raise UserError(f"{part} cannot be used: {' '.join(str(error).split())[:600] or type(error).__name__}"
                        ) from error
    if command_line.exit_code:
        raise SystemExit(command_line.exit_code)


def part_of_lightning(error: Exception) -> str | None:
    """Name the callback, logger or profiler of Lightning that has failed; None if something else has.

    An option has chosen it. What it raises tells of a wrong option, not of a fault here.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(Path(__file__).parent):
            return None
        if found := re.search(r"lightning/pytorch/(callback|logger|profiler|tuner)s?/(\w+)\.py$", path.as_posix()):
            return f"the {found[1]} {found[2]}"
        if found := re.search(r"torch/optim/(\w+)\.py$", path.as_posix()):
            return f"optimizer.class_path ({found[1]} of torch)"
    return None


class CommandLine(ParsedCommandLine):
    """Builds module, data and trainer from the options, and runs the command."""

    def before_instantiate_classes(self) -> None:
        """Give a run directory and a limit on validation batches to trainings only."""
        if self.subcommand != "fit":
            trainer = self.config[self.subcommand].trainer
            trainer.logger = False
            if not is_stated("trainer.limit_val_batches", self.stated):
                trainer.limit_val_batches = None

    def instantiate_classes(self) -> None:
        """Build module, data and trainer.

        Raises:
            UserError: a class that the user names refuses its arguments. Exceptions of our own code are bugs.
        """
        try:
            super().instantiate_classes()
        except UserError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1].filename
            if Path(place).is_relative_to(Path(__file__).parent):
                raise
            raise refused_class(error) from error

    def instantiate_trainer(self, **arguments: Any) -> Trainer:
        """Build the trainer.

        Raises:
            UserError: Lightning refuses a value of accelerator, devices, strategy or precision. It raises all of the
                types below for such values.
        """
        try:
            return super().instantiate_trainer(**arguments)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(str(error)) from error

    def after_instantiate_classes(self) -> None:
        """Give the module the whole configuration, and the data the checkpoint's tokenizer."""
        self.model.run_config = self._dump(self.parser)[str(self.subcommand)]
        if self.saved.get("tokenizer"):
            self.datamodule.use_tokenizer(tokenizer_from_texts(self.saved["tokenizer"], str(self.checkpoint)))
        if self.start is not None:
            self.model.model.load_state_dict(self.start.weights)
            self.datamodule.use_tokenizer(self.start.tokenizer)

    def before_fit(self) -> None:
        """Let a budget in minutes begin with the command, and number the runs that a file gives the same name."""
        assert isinstance(self.trainer, StepTrainer)
        self.trainer.began = self.began
        self.trainer.numbered = "name" not in self._sources[0]

    def after_fit(self) -> None:
        """Set the exit code of an interrupted training.

        Raises:
            UserError: a limit on the time or a callback has ended the training before its first step.
        """
        assert isinstance(self.trainer, StepTrainer)
        self.exit_code = 130 if self.trainer.interrupted_by_user else 0
        if self.trainer.trial:
            print(f"trainer.fast_dev_run: {self.trainer.trial} optimizer steps and a validation of as many batches "
                  "have run. Nothing was saved.", flush=True)
        if not self.trainer.global_step and not self.exit_code:
            raise UserError("the training ended before its first step: give a longer --trainer.max_time, or leave out "
                            "the callback that ends it")

    def validate(self, **arguments: Any) -> None:
        """Measure loss, perplexity and bits per byte on the validation text."""
        self.trainer.validate(**arguments, verbose=False)
        self._print_figures()

    def test(self, **arguments: Any) -> None:
        """Measure the same as `validate`; there is no separate test text."""
        self.trainer.test(**arguments, verbose=False)
        self._print_figures()

    def predict(self, **arguments: Any) -> None:
        """Write a story for each prompt to the checkpoint's run directory, and print them as a table."""
        batches = self.trainer.predict(**arguments) or []
        completions = [completion for batch in batches for completion in batch]
        assert self.checkpoint is not None
        print_predictions(completions)
        print(f"\nWritten to {write_predictions(completions, run_of(self.checkpoint, self._root))}")

    def _print_figures(self) -> None:
        data = self.datamodule
        whole, done = len(data.val_dataloader()), sum(self.trainer.num_val_batches or self.trainer.num_test_batches)
        share = "all of it" if done >= whole else f"the first {done} of its {whole} batches"
        print(f"{'text':<24}{data.valid_name}: {len(data.valid_tokens):,} tokens, {share}")
        prefix = "valid" if self.subcommand == "validate" else "test"
        for name, value in self.model.figures.items():
            print(f"{f'{prefix}_{name}':<24}{value:.4f}")
