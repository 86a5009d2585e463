"""The figures of the benchmark of training: one function per figure, and the list of all of them.

tslm runs as `fit` runs it. A peer may have several forms, such as eager and compiled. In the first round every form
runs once. After that, tslm and the fastest form of the peer run in turn until both have the requested number of runs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks import training_jobs, training_parity, training_peers
from tests.benchmarks.measure import Figure, Plan, Run, Target, in_turn, run_alone
from tests.benchmarks.training_jobs import DEFAULT_FORM, GROUP, OURS, RECOMPUTED, SHAPES, WARM_UP, WHOLE
from tests.benchmarks.training_start import FirstStep, speeds_at_once

Side = dict[str, Callable[[], float]]  # for each form of a side, a function that measures it
Runner = Callable[..., Run]  # runs a job; see `measure.run_alone`


@dataclass(frozen=True)
class Training:
    """The inputs of the figures.

    Attributes:
        shape: Model of throughput, memory and compile time, a key of `SHAPES`.
        small: Model whose losses are compared.
        quick: Model with the short step.
        batch_size: Windows in a step.
        memory_batch_size: Windows in a step of the memory figures.
        steps: Steps per run whose time counts.
        runs: Runs on each side.
        seed: Seed of weights and windows.
        device: Device of throughput, memory and compile time, "cpu" or "cuda".
        precision: Precision of throughput, memory and compile time: "bf16", "fp32" or "auto", which `fit` chooses.
        parity_text: A UTF-8 text; None uses the embedded corpus.
        parity_tokens: Training tokens of each side in the comparison of losses.
        parity_seeds: Number of seeds in the comparison of losses; the first is `seed`.
        fit_options: Options of the `fit` command of first_step and two_at_once.
        workdir: Folder that keeps compiled code and prepared data.
        scratch: Folder that is removed at the end.
        notify: Prints a sentence about progress.
        peer_forms: Forms of the peers that run, some of `training_peers.FORMS`.
        run: Runs a job, as a rule in a new process.
        peer_memory: Peak memory of each form of the peer in MB, measured once.
        speeds: Tokens per second of the runs whose memory was measured.
    """

    shape: str
    small: str
    quick: str
    batch_size: int
    memory_batch_size: int
    steps: int
    runs: int
    seed: int
    device: str
    parity_text: Path | None
    parity_tokens: int
    parity_seeds: int
    fit_options: list[str]
    workdir: Path
    scratch: Path
    notify: Callable[[str], None]
    precision: str = "auto"
    peer_forms: tuple[str, ...] = training_peers.FORMS
    run: Runner = run_alone
    peer_memory: dict[str, float] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)

    def train(self, side: str, form: str, **changes: object) -> dict[str, Any]:
        """Run `training_jobs.train` with the inputs, except for `changes`."""
        options = {"shape": self.shape, "batch_size": self.batch_size, "steps": self.steps, "seed": self.seed,
                   "device": self.device, "precision": self.precision, "compiled": self.workdir / "compiled"} | changes
        result: dict[str, Any] = self.run(training_jobs.train, side=side, form=form, **options).result
        return result

    def tokens(self, batch_size: int) -> int:
        """Return the number of tokens in a step."""
        return batch_size * SHAPES[self.shape]["context_length"]


def plans() -> list[Plan]:
    """Return all figures in the order of measurement."""
    return [
        Plan("tokens_vs_litgpt", "litgpt", partial(_tokens, peer="litgpt")),
        Plan("tokens_vs_transformers", "transformers", partial(_tokens, peer="transformers")),
        Plan("matmul_share", None, _matmul_share),
        Plan("memory", "litgpt", _memory),
        Plan("memory_whole_batch", "litgpt", partial(_memory, form=WHOLE)),
        Plan("memory_recomputed", "litgpt", partial(_memory, form=RECOMPUTED)),
        Plan("compile_time", "litgpt", _compile_time),
        Plan("lightning_cost", None, partial(_lightning_cost, progress=False)),
        Plan("lightning_cost_with_bar", None, partial(_lightning_cost, progress=True)),
        Plan("first_step", None, _first_step),
        Plan("two_at_once", None, _two_at_once),
        Plan("loss_parity_fp32", "transformers", partial(_loss_parity, precision="fp32")),
        Plan("loss_parity_bf16", "transformers", partial(_loss_parity, precision="bf16")),
    ]


def fastest_in_turn(
    sides: list[Side], runs: int, notify: Callable[[str], None]
) -> list[tuple[str, float, dict[str, float]]]:
    """Find the fastest form of each side and measure it `runs` times, in turn with the other sides.

    Args:
        sides: For each side its forms. Each form is a function that returns a speed.
        runs: Number of runs of the fastest forms, including the first round.
        notify: Prints a sentence about a form that fails.

    Returns:
        For each side: the fastest form, the median of its runs, and the speed of each form in the first round.

    Raises:
        ChildProcessError: All forms of a side fail.
    """
    first = [_first_round(side, notify) for side in sides]
    chosen = [max(reached, key=lambda form: reached[form]) for reached in first]
    values = [[reached[form]] for form, reached in zip(chosen, first, strict=True)]
    for _ in range(runs - 1):
        for form, side, so_far in zip(chosen, sides, values, strict=True):
            so_far.append(side[form]())
    return [(form, median(each), reached) for form, each, reached in zip(chosen, values, first, strict=True)]


def _first_round(side: Side, notify: Callable[[str], None]) -> dict[str, float]:
    """Measure each form once. A form that fails is skipped with a notice: for instance, there may be no compiler.

    Raises:
        ChildProcessError: All forms fail.
    """
    reached, reasons = {}, []
    for form, measure in side.items():
        try:
            reached[form] = measure()
        except ChildProcessError as error:
            reasons.append(f"{form} is skipped: {error}")
            notify(reasons[-1])
    if not reached:
        raise ChildProcessError("; ".join(reasons))
    return reached


def _throughput(training: Training, side: str, forms: tuple[str, ...]) -> Side:
    """Return functions that measure the tokens per second of each form, by the median of its steps."""
    def tokens_per_second(form: str) -> float:
        seconds = training.train(side, form)["seconds"]
        return training.tokens(training.batch_size) / median(seconds[WARM_UP:])

    return {form: partial(tokens_per_second, form) for form in forms}


def _tokens(training: Training, name: str, *, peer: str) -> Figure:
    sides = [_throughput(training, OURS, (DEFAULT_FORM[training.device],)),
             _throughput(training, peer, training.peer_forms)]
    (form, ours, _), (peer_form, theirs, peer_forms) = fastest_in_turn(sides, training.runs, training.notify)
    return Figure(name, "tokens/s", ours, theirs, f"{peer}, {peer_form}", Target("ratio", ">=", 1.5), training.runs,
                  form, {"peer_forms": peer_forms})


def _matmul_share(training: Training, name: str) -> Figure:
    def ceiling() -> float:
        job = partial(training.run, training_jobs.matmul_seconds, shape=training.shape, batch_size=training.batch_size)
        seconds = job(passes=training.steps, device=training.device, precision=training.precision).result
        return float(training.tokens(training.batch_size) / seconds)

    sides = [_throughput(training, OURS, (DEFAULT_FORM[training.device],)), {"matmuls": ceiling}]
    (form, ours, _), (_, theirs, _) = fastest_in_turn(sides, training.runs, training.notify)
    return Figure(name, "tokens/s", ours, theirs, "matmuls alone", Target("ratio", ">=", 0.75), training.runs, form)


def _memory(training: Training, name: str, *, form: str | None = None) -> Figure:
    """Compare the peak memory of a form of tslm (by default that of `fit`) with the peer's form that needs least.

    The peer computes the whole batch at once, as its user would write it. With `WHOLE`, tslm does the same.
    """

    def megabytes(side: str, form: str) -> float:
        result = training.train(side, form, batch_size=training.memory_batch_size, steps=2)
        speed = training.tokens(training.memory_batch_size) / median(result["seconds"][WARM_UP:])
        training.speeds[f"{side}, {form}"] = speed
        return float(result["peak_bytes"] / 1e6)

    form = form or DEFAULT_FORM[training.device]
    ours = megabytes(OURS, form)
    peer_forms = training.peer_memory
    if not peer_forms:  # measured once for all forms of tslm
        peer_forms |= _first_round(
            {each: partial(megabytes, "litgpt", each) for each in training.peer_forms}, training.notify)
    least = min(peer_forms, key=lambda each: peer_forms[each])
    speeds = {name: training.speeds[name] for name in (f"{OURS}, {form}", *(f"litgpt, {each}" for each in peer_forms))}
    return Figure(name, "MB", ours, peer_forms[least], f"litgpt, {least}", Target("ratio", "<=", 0.5), 1, form,
                  {"peer_forms": peer_forms, "tokens_per_second": speeds})


def _compile_time(training: Training, name: str) -> Figure:
    """Time that the first step takes longer than later steps, with an empty compile cache. There is no target."""

    def seconds(side: str) -> float:
        times = training.train(side, "compiled", compiled=training.scratch / f"compiled-{side}")["seconds"]
        return float(times[0] - median(times[WARM_UP:])) * (GROUP if training.device == "cuda" else 1)

    values = in_turn(lambda: seconds(OURS), lambda: seconds("litgpt"), 1)
    return Figure(name, "s", *values, "litgpt, compiled", None, 1, "compiled")


def _lightning_cost(training: Training, name: str, *, progress: bool) -> Figure:
    """Milliseconds per step that a Trainer with loggers takes longer than the bare loop; the median over pairs."""
    parts = training.run(
        training_jobs.lightning_cost, progress=progress, steps=20 * training.steps, rounds=5 * training.runs,
        seed=training.seed, folder=training.scratch, shape=training.quick,
    ).result
    costs = [lightning - bare for bare, lightning in zip(parts["bare"], parts["lightning"], strict=True)]
    details = {f"{side}_ms": median(parts[side]) for side in parts}
    return Figure(name, "ms", median(costs), None, None, Target("ours", "<=", 0.5), len(costs), "eager", details)


def _first_step(training: Training, name: str) -> Figure:
    """Seconds from the command to the end of the first step, minus those of importing lightning."""
    start = FirstStep(training.fit_options, training.workdir / "prepared", training.scratch)
    start.prepare()
    command, imported = in_turn(start.seconds, start.seconds_of_import, training.runs)
    return Figure(name, "s", command - imported, None, None, Target("ours", "<=", 2), training.runs, "eager",
                  {"command_s": command, "import_s": imported})


def _two_at_once(training: Training, name: str) -> Figure:
    """Compare the slower of two trainings that run at once with one that runs alone."""
    measure = partial(speeds_at_once, options=training.fit_options, prepared=training.workdir / "prepared",
                      scratch=training.scratch, steps=20 * training.steps)
    measure(1)  # prepares the data
    slower, alone = in_turn(lambda: min(measure(2)), lambda: measure(1)[0], training.runs)
    return Figure(name, "tokens/s", slower, alone, "alone", Target("ratio", ">=", 0.45), training.runs, "eager")


def _loss_parity(training: Training, name: str, *, precision: str) -> Figure:
    """Compare the validation loss with that of transformers' Llama in float32 with torch's AdamW."""
    ids = training_parity.token_ids(
        training.parity_text, SHAPES[training.small]["vocab_size"], training.scratch, training.seed
    )
    return training_parity.figure(
        name, precision, range(training.seed, training.seed + training.parity_seeds), ids=ids, shape=training.small,
        batch_size=training.batch_size, tokens=training.parity_tokens, run=training.run,
    )
