"""Print the counts of accounting.py as answers to the course's questions: the command `study accounting`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tslm.errors import UserError
from tslm.model import TransformerConfig
from tslm.studies.accounting import (
    ADAMW,
    BYTES,
    FORMS,
    GIGA,
    SIZES,
    Account,
    Part,
    account,
    gpt2,
    shown,
    total,
)
from tslm.studies.accounting_measured import Measured, measure
from tslm.studies.layout import print_note, print_table, print_title
from tslm.training.settings import PROVISIONAL_STEPS

NEWER_D_FF = 4_288  # of XL in the newer edition of the assignment: 8/3 of d_model in a multiple of 64
GROUPS = {  # of the matmuls, for the table of shares
    "projections": ("Q, K, V projections", "output projection"),
    "Q Kᵀ, sum": ("Q Kᵀ", "weighted sum of V"),
    "feed-forward": ("W₁", "W₂", "W₃"),
    "output emb.": ("output embedding",),
}


@dataclass(frozen=True)
class Training:
    """The training whose duration is asked for.

    `print_study` explains its figures.
    """

    steps: int
    batch_size: int
    tflops: list[float]
    utilisation: float


def print_study(
    size: str | None = None,
    config: str | None = None,
    d_ff: int | None = None,
    context_length: int | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    memory_gb: float = 80.0,
    tflops: list[float] | None = None,
    utilisation: float = 0.5,
    long_context: int = 16_384,
    json: bool = False,
) -> None:
    """Print the account of a GPT-2 size, or of the model of a configuration file.

    Args:
        size: GPT-2's size: small, medium, large or xl; unless given, xl.
        config: A configuration of `fit` whose model is counted and measured instead.
        d_ff: Width of the feed-forward layer; unless given, four times d_model, or the configuration's.
        context_length: Tokens of a sequence; unless given, 1,024, or the configuration's.
        batch_size: Sequences of a training step; unless given, 1,024, or the configuration's.
        steps: Steps of the training; unless given, 400,000, or the configuration's.
        memory_gb: Memory of the device in GB of 10^9 bytes.
        tflops: Speeds of devices in 10^12 operations per second; unless given, an A100's 19.5 and an H100's 495.
        utilisation: Share of that speed that the training reaches.
        long_context: The longer context for which the operations are counted again.
        json: Whether to print one JSON object instead of tables.

    Raises:
        UserError: a number is out of range, or the configuration is wrong.
    """
    if size is not None and config is not None:
        raise UserError(f"size is {size!r} and config is {config!r}, but one model is counted: give --size or --config")
    model, default_batch, default_steps = _of_config(config) if config is not None else (
        gpt2(_checked_size("xl" if size is None else size)), 1024, 400_000)
    model = replace(model, d_ff=model.d_ff if d_ff is None else d_ff,
                    context_length=model.context_length if context_length is None else context_length)
    training = Training(default_steps if steps is None else steps,
                        default_batch if batch_size is None else batch_size,
                        [19.5, 495.0] if tflops is None else tflops, utilisation)
    for name, value, fine, allowed in (
        ("batch_size", training.batch_size, training.batch_size >= 1, "1 or more"),
        ("steps", training.steps, training.steps >= 1, "1 or more"),
        ("long_context", long_context, long_context >= 1, "1 or more"),
        ("memory_gb", memory_gb, memory_gb > 0, "above 0"),
        ("tflops", training.tflops, training.tflops and min(training.tflops) > 0, "numbers above 0, as in '[19.5]'"),
        ("utilisation", utilisation, 0 < utilisation <= 1, "above 0 and at most 1"),
    ):
        if not fine:
            raise UserError(f"{name} is {value}, but it must be {allowed}: change --{name}")
    own = account(model)  # refuses a layer whose formula is not known
    accounts = [account(model, form) for form in FORMS]
    measured = None if config is None else measure(own)
    if json:
        print(as_json(accounts, training, memory_gb, long_context, measured))
    else:
        print_page(accounts, training, memory_gb, long_context, measured)


def _checked_size(size: str) -> str:
    if size not in SIZES:
        raise UserError(f"size is {size!r}, but it must be one of {', '.join(SIZES)}: change --size")
    return size


def _of_config(path: str) -> tuple[TransformerConfig, int, int]:
    """Return the model, the batch size and the steps of a configuration of `fit`."""
    from tslm.studies.fit_runs import model_of, parse_fit  # imports lightning

    options = parse_fit(["--config", path])
    data, trainer = options.data, options.trainer
    steps = trainer.max_steps or -(-(trainer.max_tokens or 0) // (data.batch_size * data.context_length))
    return model_of(options), data.batch_size, steps or PROVISIONAL_STEPS  # of a budget in minutes


def as_json(accounts: Sequence[Account], training: Training, memory_gb: float, long_context: int,
            measured: Measured | None) -> str:
    """Return everything that the page shows as one JSON object; memory is in bytes, durations are in seconds."""
    def counts(each: Account) -> dict[str, Any]:
        """Return the figures of one model."""
        long = account(replace(each.config, context_length=long_context))
        return {
            "parameters": _named(each.parameters), "num_parameters": each.num_parameters,
            "parameter_bytes": BYTES * each.num_parameters, "gradient_bytes": BYTES * each.num_parameters,
            "optimizer_bytes": 2 * BYTES * each.num_parameters,
            "activation_bytes": _named(each.activations, BYTES),
            "bytes_per_sequence": each.sequence_bytes, "bytes_of_state": each.state_bytes,
            "largest_batch": each.largest_batch(memory_gb * GIGA),
            "forward_flops": _named(each.flops), "forward_flops_total": each.forward_flops,
            "long_context_flops": _named(long.flops), "long_context_flops_total": long.forward_flops,
            "adamw_flops": each.adamw_flops,
            "training_seconds": {f"{speed:g}": each.seconds(training.steps, training.batch_size, speed * 1e12,
                                                            training.utilisation) for speed in training.tflops},
        }

    model = asdict(accounts[0].config)
    del model["ffn"]
    return json.dumps({
        "model": model, "training": asdict(training), "memory_gb": memory_gb, "long_context": long_context,
        **{form: counts(each) for form, each in zip(FORMS, accounts, strict=True)},
        "measured": None if measured is None else measured._asdict(),
    }, indent=2, ensure_ascii=False)


def _named(parts: Sequence[Part], factor: int = 1) -> dict[str, int]:
    return {part.name: factor * part.number for part in parts}


def print_page(accounts: Sequence[Account], training: Training, memory_gb: float, long_context: int,
               measured: Measured | None) -> None:
    """Print all answers for the two forms of the feed-forward layer, the three-matrix form first."""
    model = accounts[0].config
    print(f"V {model.vocab_size:,} tokens in the vocabulary, T {model.context_length:,} tokens in a sequence, "
          f"L {model.num_layers} layers,\nD {model.d_model:,} wide, H {model.num_heads} heads of K {model.head_dim}, "
          f"F {model.d_ff:,} wide inside the feed-forward layer")
    print_note("The feed-forward layer has three matrices in SwiGLU, W₂(SiLU(W₁x) · W₃x), and two in the form that "
               "the assignment assumes, W₂ SiLU(W₁x). GB are 10^9 bytes.")
    print_title("How many parameters are there, and how much memory do they take in float32?")
    _print_parts([each.parameters for each in accounts], "P")
    print_note(f"In float32: {' and '.join(f'{BYTES * each.num_parameters / GIGA:.2f} GB' for each in accounts)}.")
    _print_memory(accounts, training.batch_size, memory_gb)
    print_title(f"Which matmuls does a forward pass over one sequence of {model.context_length:,} tokens need?")
    _print_parts([each.flops for each in accounts], "FLOPs", shares=True)
    _print_sizes()
    print_title(f"And over one sequence of {long_context:,} tokens?")
    long = [account(replace(each.config, context_length=long_context)) for each in accounts]
    _print_parts([each.flops for each in long], "FLOPs", shares=True)
    factors = [more.forward_flops / each.forward_flops for more, each in zip(long, accounts, strict=True)]
    print_note(f"The context is {long_context / model.context_length:.4g} times as long, and the operations are "
               f"{' and '.join(f'{factor:.3g}' for factor in factors)} times as many, because Q Kᵀ and the weighted "
               "sum grow with T².")
    _print_adamw(accounts)
    _print_durations(accounts, training, measured is None)
    if measured is not None:
        _print_measured(account(model, measured.form), measured)


def _print_parts(columns: Sequence[Sequence[Part]], letter: str, shares: bool = False) -> None:
    """Print the formulas and numbers of one count for both forms."""
    names = dict.fromkeys(part.name for column in columns for part in column)
    rows = [["", "formula", *(cell for name in FORMS.values() for cell in [name, "share"][: 1 + shares])]]
    for name in names:
        found = [next((part for part in column if part.name == name), None) for column in columns]
        formulas = dict.fromkeys(shown(part.formula) for part in found if part)
        row = [name, " or ".join(formulas)]
        for part, column in zip(found, columns, strict=True):
            cells = [f"{part.number:,}", f"{part.number / total([*column]):.1%}"] if part else ["", ""]
            row += cells[: 1 + shares]
        rows.append(row)
    rows.append([f"total {letter}", "", *(cell for column in columns
                                          for cell in [f"{total([*column]):,}", "100%"][: 1 + shares])])
    print_table(rows, "<<" + ">" * (len(rows[0]) - 2))


def _print_memory(accounts: Sequence[Account], batch_size: int, memory_gb: float) -> None:
    print_title("How much memory does training take?")
    print_note("Activations of one sequence, in numbers of floats:")
    _print_parts([each.activations for each in accounts], "A")
    rows = [["in float32", "formula", *FORMS.values()]]
    for name, formula, values in (
        ("parameters", "4·P", [BYTES * each.num_parameters for each in accounts]),
        ("gradients", "4·P", [BYTES * each.num_parameters for each in accounts]),
        ("AdamW's m and v", "8·P", [2 * BYTES * each.num_parameters for each in accounts]),
        ("b, all of these", "16·P", [each.state_bytes for each in accounts]),
        ("a, activations of a sequence", "4·A", [each.sequence_bytes for each in accounts]),
    ):
        rows.append([name, formula, *(f"{value:,} bytes" for value in values)])
    rows.append(["total", "a·batch + b", *(f"{each.sequence_bytes / GIGA:.4g}·batch + {each.state_bytes / GIGA:.4g} GB"
                                           for each in accounts)])
    rows.append([f"batch of {batch_size:,}", "", *(f"{each.memory_bytes(batch_size) / GIGA:,.1f} GB"
                                                   for each in accounts)])
    rows.append([f"largest batch in {memory_gb:g} GB", "", *(f"{each.largest_batch(memory_gb * GIGA):,}"
                                                            for each in accounts)])
    print()
    print_table(rows, "<<>>")


def _print_sizes() -> None:
    print_title("Which share of the operations has each part, in GPT-2's sizes (d_ff = 4·d_model)?")
    rows = [["", "", *GROUPS, "FLOPs"]]
    for form, name in FORMS.items():
        for size in SIZES:
            each = account(gpt2(size), form)
            rows.append([size, name, *(f"{share:.1%}" for share in group_shares(each).values()),
                         f"{each.forward_flops:.3e}"])
    print_table(rows, "<<" + ">" * (len(GROUPS) + 1))
    print_note("The wider the model, the smaller are the shares of the output embedding, which exists once, and of the "
               "products with T², which grow with D and not with D².")


def group_shares(each: Account) -> dict[str, float]:
    """Return the share of each group of matmuls in a forward pass."""
    return {group: sum(part.number for part in each.flops if part.name in names) / each.forward_flops
            for group, names in GROUPS.items()}


def _print_adamw(accounts: Sequence[Account]) -> None:
    print_title("How many operations is one step of AdamW?")
    rows = [["equation", "operations per parameter", *FORMS.values()]]
    rows += [[equation, str(count), *(f"{count * each.num_parameters:,}" for each in accounts)]
             for equation, count in ADAMW.items()]
    rows.append(["total", str(sum(ADAMW.values())), *(f"{each.adamw_flops:,}" for each in accounts)])
    print_table(rows, "<>>>")
    print_note("Constants such as 1 - β₁ and α_t are computed once for all parameters and are not counted.")


def _print_durations(accounts: Sequence[Account], training: Training, with_newer: bool) -> None:
    print_title(f"How long do {training.steps:,} steps with a batch of {training.batch_size:,} take at "
                f"{training.utilisation:.0%} utilisation?")
    rows = [["model", "TFLOP/s", "FLOPs of the training", "days", "hours"]]
    newer = [(f"xl, d_ff {NEWER_D_FF:,}, three matrices", account(gpt2("xl", NEWER_D_FF)))] if with_newer else []
    for name, each in [*zip(FORMS.values(), accounts, strict=True), *newer]:
        for speed in training.tflops:
            seconds = each.seconds(training.steps, training.batch_size, speed * 1e12, training.utilisation)
            rows.append([name, f"{speed:g}", f"{3 * each.forward_flops * training.batch_size * training.steps:.4e}",
                         *(f"{seconds / unit:,.1f}" if seconds >= unit else f"{seconds / unit:.3g}"
                           for unit in (86_400, 3_600))])
    print_table(rows, "<>>>>")
    print_note("FLOPs of the training = 3 · forward pass · batch · steps, because the backward pass takes twice the "
               "operations of the forward pass. Its seconds are these by utilisation · TFLOP/s · 10^12.")


def _print_measured(each: Account, measured: Measured) -> None:
    print_title("What is measured here, for one sequence?")
    rows = [["", "counted above", "measured"],
            ["FLOPs, forward", f"{each.forward_flops:,}", f"{measured.forward_flops:,}"],
            ["FLOPs, backward", f"{2 * each.forward_flops:,}", f"{measured.backward_flops:,}"]]
    for name, counted, found in (
        ("bytes of parameters", BYTES * each.num_parameters, measured.parameter_bytes),
        ("bytes of gradients", BYTES * each.num_parameters, measured.gradient_bytes),
        ("bytes of AdamW's state", 2 * BYTES * each.num_parameters, measured.optimizer_bytes),
        ("bytes of activations", each.sequence_bytes, measured.activation_bytes),
    ):
        rows.append([name, f"{counted:,}", "not measured" if found is None else f"{found:,}"])
    print_table(rows, "<>>")
    print_note("FLOPs are those that torch.utils.flop_counter finds in the model's own code, without substitutes. "
               "Bytes are those of the tensors of a real step in float32. Autograd keeps more activations than the "
               "assignment's list has: the inputs of every product and sum, copies, and masks." if
               measured.parameter_bytes is not None else f"The bytes are not measured, because {measured.reason}.")
