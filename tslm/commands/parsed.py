"""The options of `fit`, `validate`, `test` and `predict`, and the rules for what decides a value.

The command line wins over the configuration file, that over the checkpoint, that over the defaults; only the
architecture is always the checkpoint's, and stating another one is an error. From a checkpoint come only the plain
settings that `tslm.training.saved_settings` lists: no class, and no path to write to.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse.typing import register_type
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from tslm.commands.arguments import OneSentenceErrors
from tslm.commands.checkpoint_options import LINKED, Start, load_start, other_prompts, take_architecture, take_settings
from tslm.commands.options import (
    asks_for_help,
    config_folder,
    configs_first,
    find_shipped,
    is_stated,
    stated_options,
    stated_values,
    values_in,
)
from tslm.data.datamodule import EVALUATING, TextDataModule
from tslm.errors import UserError
from tslm.loops.lightning import StepCallback
from tslm.loops.step import TokenCount
from tslm.training.checkpoint import fit_part, read_checkpoint
from tslm.training.checkpoint_callback import Checkpoints
from tslm.training.lightning_features import REFUSED_FLAGS
from tslm.training.module import LanguageModule
from tslm.training.run_dirs import run_dir
from tslm.training.runs import find_checkpoint
from tslm.training.saved_settings import read_architecture, read_settings
from tslm.training.settings import GenerationSettings, OptimizerSettings
from tslm.training.trainer import StepTrainer
from tslm.training.writing import replace_atomically

register_type(TokenCount, serializer=int, deserializer=TokenCount)
QUICK_START = "quickstart.yaml"
# Lightning's Timer has an Enum as the default of an argument.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))
BUDGETS = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_minutes")


def _optimizer_settings(values: Any) -> OptimizerSettings:  # with types, or the parser looks for them elsewhere
    return OptimizerSettings(**values)


class CommandParser(OneSentenceErrors, LightningArgumentParser):
    """Lightning's parser, with a UserError for every mistake."""


class SaveRunConfig(StepCallback, SaveConfigCallback):
    """Saves config.yaml in the run directory of a training; the other commands save nothing."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write the configuration with which `fit --config` repeats the training."""
        if stage == "fit" and not trainer.trial:
            run_dir(trainer).mkdir(parents=True, exist_ok=True)
            text = self.parser.dump(self.config, skip_none=False)
            replace_atomically(run_dir(trainer) / "config.yaml", lambda file: file.write(text.encode()))

    def on_budget_fixed(self, trainer: Any, pl_module: Any, steps: int) -> None:
        """Write the number of steps, too, and of those that were measured."""
        self.config.trainer.max_steps, self.config.optimizer.measured_steps = steps, trainer.global_step
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")


class ParsedCommandLine(LightningCLI):
    """The options of the four commands, and what decides their values; `tslm.cli` builds and runs.

    Args:
        argv: arguments from the command on; None takes the process's own.
        began: when the command began, by time.perf_counter; now, unless given.

    Attributes:
        checkpoint: the checkpoint that is resumed, measured or sampled from.
        saved: the part of it that tslm adds to Lightning's.
        start: the weights of `--init_from`.
        stated: keys of the options on the command line and in configuration files.
        exit_code: of the process.
    """

    def __init__(self, argv: list[str] | None, began: float | None = None) -> None:
        self.began = time.perf_counter() if began is None else began
        self.checkpoint: Path | None = None
        self.saved: dict[str, Any] = {}
        self.stated: set[str] = set()
        self._sources: list[dict[str, Any]] = []  # the keys and values of command line and files, the strongest first
        self._budget: set[str] = set()  # its keys, if one is stated
        self.start: Start | None = None
        self.exit_code = 0
        super().__init__(
            LanguageModule,
            TextDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_class=StepTrainer,
            seed_everything_default=0,
            parser_kwargs={"prog": "python -m tslm"},
            parser_class=CommandParser,
            args=argv,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the four commands, each with the arguments of the Trainer's method that are not options."""
        hidden = {"model", "dataloaders", "datamodule", "weights_only", "verbose", "return_predictions"}
        loaders = {"train_dataloaders", "val_dataloaders"}
        return {"fit": hidden | loaders, "validate": hidden, "test": hidden, "predict": hidden}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of optimizer, generation and checkpoints to those of model, data and trainer."""
        parser.add_argument("--optimizer", type=OptimizerSettings, default=OptimizerSettings())
        # `class_path` is one of the settings, and not the class of the settings themselves.
        parser._option_string_actions["--optimizer"].basetype = None  # type: ignore[attr-defined]
        parser.add_argument("--generation", type=GenerationSettings, default=GenerationSettings())
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_argument("--name", type=str | None, default=None, help="name of the run directory of `fit`")
        parser.link_arguments("name", "trainer.name")
        parser.add_argument("--init_from", type=str | None, default=None,
                            help="a checkpoint from whose weights and tokenizer `fit` starts a new run on other text, "
                            "with a fresh optimizer and schedule: a file, a run directory, `last`, `best`, or a folder "
                            "with a Llama of Hugging Face")
        # As an object: the parser would take `class_path` in plain values for the name of the settings' class.
        parser.link_arguments("optimizer", "model.optimizer", _optimizer_settings)
        parser.link_arguments("generation", "model.generation")
        for flag in REFUSED_FLAGS:
            parser._option_string_actions[f"--trainer.{flag}"].help = argparse.SUPPRESS
        for name, source in LINKED.items():
            parser.link_arguments(source, f"model.{name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line over its configuration files, over the checkpoint, over the defaults."""
        assert args is None or isinstance(args, list)
        argv = sys.argv[1:] if args is None else list(args)
        command, flags = argv[0] if argv else "", stated_values(argv[1:])
        given = {key for key, value in flags.items() if value is not None}
        if command == "fit" and not given & {"config", "ckpt_path", "init_from"} and not asks_for_help(argv):
            argv = [command, "--config", str(config_folder() / QUICK_START), *argv[1:]]
        args, notices = find_shipped(argv)
        files = [values_in(path) for name, path in stated_options(args) if name in ("-c", "--config") and path]
        self._sources = [flags, *reversed(files)]
        self.stated = set[str]().union(*self._sources)
        cleared, more_notices = self._settle_optimizer()
        words = [f"--{key}=null" for key in [*self._settle_budget(), *other_prompts(self._sources), *cleared]]
        notices += more_notices
        # Not on the standard output, which may be the YAML of --print_config or the JSON of a study.
        print(*notices, sep="\n", end="\n" * bool(notices), file=sys.stderr, flush=True)
        super().parse_arguments(parser, configs_first(args, words))
        command = self.config.subcommand
        config = self.config[command]
        if command != "fit" or config.get("ckpt_path") is not None:
            prefer = "last" if command == "fit" else "best"
            self.checkpoint, remarks = find_checkpoint(config.get("ckpt_path"), prefer=prefer, root=self._root)
            print(*remarks, sep="\n", end="\n" * bool(remarks), flush=True)
            state = read_checkpoint(self.checkpoint, mmap=True)
            self.saved = fit_part(state, self.checkpoint)
            if command in EVALUATING and not (read_settings(self.saved).allowed or is_stated("data", self.stated)):
                raise UserError(f"{self.checkpoint} does not say which text it was trained and validated on: give "
                                "--data.valid_files, or --data.corpus")
            self._keep_found_steps(state["global_step"])
            self._take_over_saved(parser, command)
        if command == "fit" and config.get("init_from") is not None:
            self._start_from(parser, config.init_from)
        elif (stated := {"name", "init_from"} & given) and command != "fit":
            raise UserError(f"--{min(stated)} belongs to fit: leave it out of {command}")
        self._settle_seed()
        seed = self.config[command].seed_everything
        if not isinstance(seed, bool) and not 0 <= (seed or 0) < 2**32:
            raise UserError(f"seed_everything is {seed}: give a whole number from 0 to {2**32 - 1}")

    @property
    def _root(self) -> Path:
        """The folder that holds lightning_logs."""
        return Path(self.config[self.config.subcommand].trainer.default_root_dir)

    @property
    def _stated_ffn(self) -> str | None:
        """The feed-forward layer, if the user states it; a checkpoint may not name code."""
        return self.config[self.config.subcommand].model.ffn if is_stated("model.ffn", self.stated) else None

    def _take_over_saved(self, parser: LightningArgumentParser, command: str) -> None:
        """Replace what the user has not stated by the plain settings of the checkpoint, and print what differs."""
        options = self._dump(parser)
        assert self.checkpoint is not None
        architecture = read_architecture(self.saved, self.checkpoint, ffn=self._stated_ffn)
        decided = take_architecture(options[command], architecture, self.checkpoint, self.stated)
        decided |= self._budget and {*BUDGETS} - self._budget
        take_settings(options[command], read_settings(self.saved), decided, self.stated, report=command == "fit")
        options[command]["ckpt_path"] = str(self.checkpoint)
        self.config = parser.parse_object(options)

    def _start_from(self, parser: LightningArgumentParser, wanted: str) -> None:
        """Take architecture and tokenizer of a checkpoint, and nothing else, for a new run on other text.

        Raises:
            UserError: a run is to be resumed as well, or the user states another architecture.
        """
        if self.config.fit.get("ckpt_path") is not None:
            raise UserError("--ckpt_path resumes a run, and --init_from starts a new one from its weights: give one of "
                            "them")
        self.start, remarks = load_start(wanted, self._root, self._stated_ffn)
        print(*remarks, sep="\n", end="\n" * bool(remarks), flush=True)
        options = self._dump(parser)
        take_architecture(options["fit"], self.start.architecture, self.start.path, self.stated)
        if not is_stated("data.special_tokens", self.stated):
            options["fit"]["data"]["special_tokens"] = self.start.tokenizer.special_tokens
        self.config = parser.parse_object(options)

    def _dump(self, parser: LightningArgumentParser) -> dict[str, Any]:
        """Return the configuration as plain values.

        Raises:
            UserError: an argument of a class that the user names is no plain value.
        """
        try:
            text = parser.dump(self.config, skip_link_targets=True, skip_none=False)
        except ValueError as error:
            raise UserError("a class among the options cannot be used, because config.yaml cannot hold its arguments: "
                            "state them in init_args as plain values") from error
        return yaml.safe_load(text)  # type: ignore[no-any-return]

    def _settle_seed(self) -> None:
        """Let `seed_everything` decide the windows of a new run too, unless `data.seed` is stated beside or over it."""
        options = self.config[self.config.subcommand]
        if options.seed_everything is True:
            options.seed_everything = secrets.randbelow(2**32)  # config.yaml keeps it
        is_new = self.config.subcommand == "fit" and self.checkpoint is None
        seeds = next(filter(None, (each.keys() & {"seed_everything", "data.seed"} for each in self._sources)), ())
        if is_new and "data.seed" not in seeds and type(options.seed_everything) is int:
            options.data.seed = options.seed_everything

    def _keep_found_steps(self, done: int) -> None:
        """Let minutes that are stated as before mean the steps that were found for them, until these are done."""
        before = read_settings(self.saved).allowed
        steps, minutes = before.get("trainer.max_steps"), before.get("trainer.max_minutes")
        options = self.config[self.config.subcommand].trainer
        if self._budget == {"trainer.max_minutes"} and options.max_minutes == minutes and done < (steps or 0):
            options.max_steps = steps

    def _settle_budget(self) -> list[str]:
        """Find the budget of the strongest source that has one; return the kinds of budget that it replaces.

        Of several kinds in one file, the trainer refuses all but minutes with the steps that fit into them. These are
        both in the config.yaml of a run.

        Raises:
            UserError: the command line has both.
        """
        given = [{key for key in BUDGETS if each.get(key) is not None} for each in self._sources]
        if {"trainer.max_steps", "trainer.max_minutes"} <= given[0]:
            raise UserError("--trainer.max_steps and --trainer.max_minutes are two budgets: give one of them")
        self._budget = next(filter(None, given), set[str]())
        return [key for key in BUDGETS if self._budget and key not in self._budget]

    def _settle_optimizer(self) -> tuple[list[str], list[str]]:
        """Let another optimizer than that of weaker sources have none of their `init_args`.

        Returns:
            The key of `init_args`, if they are to be cleared, and a notice about the other settings, which stay.
        """
        place = next((n for n, each in enumerate(self._sources) if each.get("optimizer.class_path")), None)
        if place is None:
            return [], []
        chosen, weaker = self._sources[place]["optimizer.class_path"], dict[str, Any]()
        for each in reversed(self._sources[place + 1 :]):
            weaker |= {key: value for key, value in each.items() if key.startswith("optimizer.")}
        before = weaker.pop("optimizer.class_path", OptimizerSettings.class_path)
        stronger = set[str]().union(*self._sources[: place + 1])
        kept = ", ".join(f"{key.removeprefix('optimizer.')} {value}" for key, value in weaker.items()
                         if not is_stated(key, stronger) and not key.startswith("optimizer.init_args"))
        if chosen == before or not weaker:
            return [], []
        notice = f"optimizer.class_path is {chosen}, with settings that the configuration has for {before}: {kept}"
        in_files = set[str]().union(*self._sources[1 : place + 1])
        return ["optimizer.init_args"] * (not is_stated("optimizer.init_args", in_files)), [notice] * bool(kept)

    def _parse_ckpt_path(self) -> None:
        """Do nothing, because `parse_arguments` has read the checkpoint."""
