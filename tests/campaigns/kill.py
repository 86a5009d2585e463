"""`python -m tests.campaigns.kill`: kill trainings, resume them, and compare them bit by bit with undisturbed ones.

A short training is killed by SIGKILL, perhaps resumed and killed again, then resumed until it is finished. Weights,
optimizer, schedule, generators, the rows of metrics.csv, the summary, the stories and the best checkpoint must equal
those of an uninterrupted training with the same settings. No complete checkpoint may be lost, and no temporary file may
be left. Other families send SIGTERM and SIGINT, or kill one of two processes.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.campaigns.campaign import Case, check_equal, full, run_campaign
from tests.campaigns.kill_server import Point, Signal
from tests.campaigns.kill_training import Lab, Reference, Settings, Training
from tslm.errors import PEER_ENDED

SAVING = "tslm.training.checkpoint_callback:Checkpoints.on_step_save"
VALIDATING = "tslm.loops.lightning:StepEpochLoop.validate"
PREPARING = "tslm.data.datamodule:TextDataModule.load"
CADENCES = [(0, 3, 5), (5, 0, 2), (4, 4, 4), (3, 1, 1)]  # steps between two validations, checkpoints and reports
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
SIGNAL_SECONDS = 60.0  # a timeout
PEER_SECONDS = 60.0  # in which the other process must end, after one is killed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and return the exit code."""
    families = [anywhere, command_line, checkpoint_write, validation, preparation, signals, worker]
    description = "Kill trainings, resume them, and compare the results with undisturbed trainings."
    try:
        return run_campaign("tests.campaigns.kill", families, description, arguments)
    finally:
        while _labs:
            _labs.popitem()[1].server.close()


_labs: dict[Path, Lab] = {}


def lab_of(case: Case) -> Lab:
    """Return the server and the references of this campaign; start the server first."""
    if case.folder not in _labs:
        _labs[case.folder] = Lab(case.folder)
    return _labs[case.folder]


@full(240)
def anywhere(case: Case) -> None:
    """Kill a forked process once or twice, at any time of its life or of its training."""
    settings = draw_settings(case, extended=case.rng.random() < 0.2)
    reference = lab_of(case).reference(settings)
    kills = [draw_moment(case, reference) for _ in range(case.rng.choice([1, 1, 2]))]
    if settings.extended and case.rng.random() < 0.5:
        kills.insert(0, {})  # the first part is not killed
    check(case, settings, reference, kills)


@full(60)
def command_line(case: Case) -> None:
    """Kill `python -m tslm fit` at any time from the imports on, and resume it, perhaps in a forked process."""
    settings = draw_settings(case)
    lab = lab_of(case)
    whole = lab.reference(Settings(), fork=False)
    kill = {"signals": [Signal(case.rng.uniform(0, whole.seconds))], "fork": False}
    check(case, settings, lab.reference(settings), [kill, {"fork": case.rng.random() < 0.8}])


@full(100)
def checkpoint_write(case: Case) -> None:
    """Kill a process inside the write of a checkpoint: at a byte, at a system call, or at any call."""
    settings = draw_settings(case)
    check_inside(case, settings, SAVING, ["bytes", "system", "calls"])


@full(100)
def validation(case: Case) -> None:
    """Kill a process inside a validation."""
    settings = draw_settings(case)
    check_inside(case, settings, VALIDATING, ["system", "calls"])


@full(100)
def preparation(case: Case) -> None:
    """Kill a process while it prepares corpus, tokenizer and token files."""
    settings = Settings(steps=2)
    check_inside(case, settings, PREPARING, ["system", "calls"])


@full(40)
def signals(case: Case) -> None:
    """Send SIGTERM or SIGINT once or twice: the process saves the step and ends with 143 or 130.

    Every step is reported, because a process that stops reports its last step.
    """
    settings = draw_settings(case, log=1)
    reference = lab_of(case).reference(settings)
    number = case.rng.choice(list(CODES))
    first = draw_moment(case, reference, number)["signals"][0]
    sent = [first]
    if case.rng.random() < 0.4:
        sent.append(Signal(first.delay + case.rng.choice([0.0, 0.01, 0.1, 0.5]), first.since, number))
    codes = {CODES[number], -number}  # -number: before the program handles the signal
    training = check(case, settings, reference, [{"signals": sent, "codes": codes, "seconds": SIGNAL_SECONDS}])
    stopped = re.search(r"Stopped at step (\d+) of", training.ends[0].output)
    if stopped and len(training.runs) > 1:
        check_equal(training.runs[1][1], int(stopped[1]))  # the step that the next run has started from


@full(20)
def worker(case: Case) -> None:
    """Kill one of two processes of a training: the other one ends by itself, with a sentence."""
    alone = draw_settings(case)
    settings = Settings((*alone.options, "--trainer.devices=2", "--trainer.strategy=ddp"), processes=2)
    lab = lab_of(case)
    reference = lab.reference(settings)
    process = case.rng.randint(0, 1)
    if launched := case.rng.random() < 0.3:  # the first process starts the second one, which may be killed at any time
        seconds = lab.reference(settings, fork=False, processes=1).seconds
        kill = {"signals": [Signal(case.rng.uniform(0, seconds), process=process)], "fork": False, "processes": 1}
    else:
        seconds = reference.seconds - reference.first_step
        kill = {"signals": [Signal(case.rng.uniform(0, seconds), "step", process=process)]}
    training = check(case, settings, reference, [kill])
    first = training.ends[0]
    if first.alone > PEER_SECONDS:
        raise AssertionError(f"the other process ended after {first.alone} s")
    if first.killed and not (launched and process == 0):
        check_equal((PEER_ENDED in first.output), 0 not in first.codes)


def draw_settings(case: Case, *, extended: bool = False, log: int | None = None) -> Settings:
    """Draw the settings of a training."""
    rng = case.rng
    validate, save, usual_log = rng.choice(CADENCES)
    settings = Settings((
        f"--trainer.precision={rng.choice(['32-true', 'bf16-mixed'])}",
        f"--data.micro_batch_size={rng.choice(['null', '1', '2'])}",
        f"--data.align_documents={rng.choice(['true', 'false'])}",
        f"--model.recompute={rng.choice(['true', 'false'])}",
        f"--trainer.val_every_n_steps={validate}", f"--trainer.save_every_n_steps={save}",
        f"--trainer.log_every_n_steps={log or usual_log}",
    ), extended=extended)  # fmt: skip
    case.note(settings=settings)
    return settings


def draw_moment(case: Case, reference: Reference, number: int = signal.SIGKILL) -> dict[str, Any]:
    """Draw an instant of a process's life, or of its training."""
    since = case.rng.choice(["start", "step"])
    length = reference.seconds if since == "start" else reference.seconds - reference.first_step
    return {"signals": [Signal(case.rng.uniform(0, length), since, number)]}


def check_inside(case: Case, settings: Settings, function: str, kinds: list[str]) -> None:
    """Kill a process inside a function, and perhaps also the one that resumes."""
    fresh = function == PREPARING
    reference = lab_of(case).reference(settings, measure=function, cache="cache" if fresh else "../cache")
    kills = []
    for _ in range(case.rng.choice([1, 1, 2])):
        entry = case.rng.randint(1, len(reference.measured))
        kind = case.rng.choice(kinds)
        number = case.rng.randint(1, max(1, reference.measured[entry - 1][kind]))
        kills.append({"point": Point(function, entry, kind, number)})
    check(case, settings, reference, kills, cache="cache" if fresh else None)


def check(
    case: Case, settings: Settings, reference: Reference, kills: list[dict[str, Any]], cache: str | None = None
) -> Training:
    """Kill, resume and compare."""
    forgets = case.rng.random() < 0.2
    training = Training(lab_of(case), settings, case.rng, cache=cache or ("cache" if forgets else "../cache"),
                        move=case.rng.random() < 0.2, forget=forgets)  # fmt: skip
    case.note(kills=kills, history=training.history)
    training.complete(kills)
    training.compare(reference)
    return training


if __name__ == "__main__":
    sys.exit(main())
