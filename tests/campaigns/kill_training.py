"""One training of a kill campaign: its options, its interrupted and resumed runs, and what must be equal at its end."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import random
import re
import shutil
import signal
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.campaign import check_equal
from tests.campaigns.kill_server import Ended, Server
from tests.conftest import ROOT
from tslm.data.toy import write_corpus
from tslm.training.checkpoint import is_intact
from tslm.training.runs import RUNS

STEPS = 12
TOKENS_PER_STEP = 4 * 32
TINY = [
    "fit", "--config", str(ROOT / "configs" / "text.yaml"), '--data.train_files=["../s.txt"]', "--data.vocab_size=300",
    "--data.context_length=32", "--data.batch_size=4", "--model.d_model=16", "--model.num_layers=1",
    "--model.num_heads=2", "--model.d_ff=32", "--trainer.accelerator=cpu", "--generation.max_new_tokens=4",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
BUDGETS = ("--trainer.max_steps={}", "--trainer.max_tokens={}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the result of a training; trainings with equal settings have one reference."""

    options: tuple[str, ...] = ("--trainer.precision=32-true", "--trainer.val_every_n_steps=0")
    steps: int = STEPS
    extended: bool = False  # first trained for half of the steps, then resumed with the whole budget
    processes: int = 1

    @property
    def budgets(self) -> list[int]:
        """The budgets of the parts of the training."""
        return [self.steps // 2, self.steps] if self.extended else [self.steps]


@dataclasses.dataclass(frozen=True)
class Reference:
    """The outcome of an uninterrupted training, and what is needed to draw an instant of it."""

    outcome: dict[str, Any]
    seconds: float
    first_step: float
    measured: list[dict[str, int]]  # the counts of each call of the measured function


class Lab:
    """The server, the text, the prepared data and the references of a campaign."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server(folder)
        self._references: dict[object, Reference] = {}
        write_corpus(folder / "s.txt", 60, seed=7)

    def reference(self, settings: Settings, cache: str = "../cache", **options: Any) -> Reference:
        """Return the outcome of an uninterrupted training; train only once.

        Args:
            settings: what decides the result.
            cache: the folder of prepared data.
            options: those of `Server.run`.
        """
        key = settings, cache, *options.items()
        if key not in self._references:
            training = Training(self, settings, random.Random(0), cache=cache)
            counts: list[dict[str, int]] = []
            for budget in settings.budgets:
                ended = training.go(budget, **options)
                counts += [json.loads(line) for line in re.findall(r"^measured (.*)$", ended.output, re.MULTILINE)]
            self._references[key] = Reference(training.outcome(), ended.seconds, ended.first_step or 0.0, counts)
        return self._references[key]


class Training:
    """A training that is killed and resumed until it is finished.

    Args:
        lab: the campaign's server and references.
        settings: what decides the result.
        rng: draws what must not change the result: how the budget is stated, how many checkpoints are kept, and which
            options are stated again on resuming.
        cache: the folder of prepared data, from the working folder.
        move: whether run directories are moved before they are resumed.
        forget: whether the prepared data is deleted before a run is resumed.
    """

    def __init__(
        self, lab: Lab, settings: Settings, rng: random.Random, *, cache: str = "../cache", move: bool = False,
        forget: bool = False,
    ) -> None:
        self.lab, self.settings, self.rng, self.cache = lab, settings, rng, cache
        self.move, self.forget = move, forget
        self.folder = lab.folder / "project"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.runs: list[tuple[Path, int]] = []  # run directories, and the step that each was resumed from
        self.ends: list[Ended] = []
        self.history: list[str] = []  # the newest first
        self.stories: str | None = None  # of the end of the training, if it was not killed while they were printed
        self._keep = f"--checkpoint.keep={rng.choice([1, 2])}"
        self._budget = rng.choice(BUDGETS)

    def finished(self, budget: int) -> bool:
        """Whether the newest run has spent the budget and written its summary."""
        path = self.runs[-1][0] / "summary.json" if self.runs else None
        summary = json.loads(path.read_text()) if path is not None and path.is_file() else {}
        return bool(summary.get("finished")) and summary["steps"] == budget

    def complete(self, kills: Sequence[Mapping[str, Any]]) -> None:
        """Train to the end; the first processes are killed, later ones are not.

        Args:
            kills: for each process to kill the options of `Server.run`.
        """
        left = list(kills)
        for budget in self.settings.budgets:
            while not self.finished(budget):
                self.go(budget, **(left.pop(0) if left else {}))

    def go(self, budget: int, *, codes: Container[int] = (), **options: Any) -> Ended:
        """Start or resume the training.

        Args:
            budget: optimizer steps.
            codes: exit codes that are allowed before the training is finished, besides that of a SIGKILL.
            options: those of `Server.run`.
        """
        checkpoints = self.checkpoints()
        if self.move and checkpoints:
            self._move(_newest(checkpoints))
            checkpoints = self.checkpoints()
        if self.forget and self.history:
            shutil.rmtree(self.folder / self.cache, ignore_errors=True)
        words = ["fit"] if checkpoints and self.rng.random() < 0.7 else [*TINY, *self.settings.options]
        amount = budget if "steps" in self._budget else budget * TOKENS_PER_STEP
        words = [*words, self._budget.format(amount), self._keep, f"--data.cache_dir={self.cache}"]
        if checkpoints:
            run = _newest(checkpoints).parent.parent
            words += ["--ckpt_path", "last" if run.parent.name == RUNS else str(run.relative_to(self.folder))]
        before = set((self.folder / RUNS).glob("*"))
        ended = self.lab.server.run(words, self.folder, **{"processes": self.settings.processes} | options)
        self.ends.append(ended)
        self.history.insert(0, f"{' '.join(words)}\n{options}: {ended.codes}\n{ended.output[-2000:]}")
        resumed = re.search(r"^Checkpoint: (.*?\.ckpt)", ended.output, re.MULTILINE)
        start = _step(self.folder / resumed[1]) if resumed is not None else 0
        check_equal((ended.problem, "Traceback" in ended.output), ("", False))
        if resumed is not None:
            check_equal(start, max(checkpoints.values()))
        self.runs += [(path, start) for path in sorted(set((self.folder / RUNS).glob("*")) - before)]
        if found := re.search(r"\n--- a story.*?(?=\n\ntokens seen)", ended.output, re.DOTALL):
            self.stories = found[0]
        if not self.finished(budget) and not any(code == -signal.SIGKILL or code in codes for code in ended.codes):
            raise AssertionError(f"not finished, and the exit codes are {ended.codes}")
        done = max(self.checkpoints().values(), default=0)
        if 0 in ended.codes and done != budget:
            raise AssertionError(f"a process has succeeded, and the latest checkpoint is of step {done}")
        return ended

    def checkpoints(self) -> dict[Path, int]:
        """Return all checkpoints with their steps; each one must be complete."""
        return {path: _step(path) for run, _ in self.runs for path in sorted(run.glob("checkpoints/[!.]*.ckpt"))}

    def outcome(self) -> dict[str, Any]:
        """Return everything that must not depend on interruptions."""
        run = self.runs[-1][0]
        summary = json.loads((run / "summary.json").read_text())
        state = torch.load(self.folder / summary["checkpoint"], weights_only=True)
        best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
        own, callbacks = state.pop("tslm"), state.pop("callbacks")
        del callbacks["Checkpoints"]["folder"]
        for name in ("tokens_per_second", "seconds", "checkpoint", "continues"):
            del summary[name]
        return {
            "checkpoint": digest(state), "callbacks": digest(callbacks), "rng": digest(own["rng"]),
            "identity": digest([own["architecture"], own["tokenizer"], own["fingerprints"]]),
            "best": (best["global_step"], digest(best["state_dict"])), "summary": summary, "rows": self.rows(),
            "stories": self.stories,
        }

    def rows(self) -> list[tuple[int, dict[str, str]]]:
        """Return the rows of metrics.csv along the path to the final checkpoint; a repeated row must be equal."""
        found: dict[tuple[int, str], dict[str, str]] = {}
        ends = [start for _, start in self.runs[1:]] + [self.settings.steps]
        for (run, _), end in zip(self.runs, ends, strict=True):
            if not (run / "metrics.csv").is_file():
                continue
            with (run / "metrics.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    step = int(row.pop("step"))
                    row.pop("train/tokens_per_second", None)
                    row.pop("train/flops_utilisation", None)
                    figures = {name: value for name, value in row.items() if value}
                    if step <= end:
                        key = step, min(figures)
                        check_equal(found.setdefault(key, figures), figures)
        return [(key[0], found[key]) for key in sorted(found)]

    def compare(self, reference: Reference) -> None:
        """Check that the outcome equals the reference's and that no temporary file is left."""
        outcome = self.outcome()
        for name, expected in reference.outcome.items():
            if None not in (outcome[name], expected) and outcome[name] != expected:
                raise AssertionError(f"{name} differs:\nfound    {outcome[name]!r}\nexpected {expected!r}")
        places = [self.folder, self.folder / self.cache]
        check_equal([str(path) for place in places for path in place.rglob(".*")], [])

    def _move(self, checkpoint: Path) -> None:
        """Move the run directory of a checkpoint out of the folder of runs."""
        old = checkpoint.parent.parent
        new = self.folder / "moved" / str(len(self.history))
        new.parent.mkdir(exist_ok=True)
        shutil.move(old, new)
        self.runs = [(new if path == old else path, start) for path, start in self.runs]


def _newest(checkpoints: Mapping[Path, int]) -> Path:
    """Return a checkpoint of the latest step, in the latest run that has one."""
    latest = max(checkpoints.values())
    return [path for path, step in checkpoints.items() if step == latest][-1]


def _step(path: Path) -> int:
    if not is_intact(path):
        raise AssertionError(f"{path} is not complete")
    return int(torch.load(path, weights_only=True, mmap=True)["global_step"])


def digest(value: Any) -> Any:
    """Replace tensors by hashes of their bytes, types and shapes."""
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(data).hexdigest()[:16]
    if isinstance(value, dict):
        return {str(key): digest(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [digest(each) for each in value]
    return repr(value)
