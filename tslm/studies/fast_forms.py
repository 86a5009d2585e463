"""`study fast`: which form of each replaceable function runs on this machine, why, and how much faster it is."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch

from tslm.errors import UserError
from tslm.fast import door
from tslm.fast.table import SUBSTITUTES, Place
from tslm.model import TransformerConfig, TransformerLM

# The course's model with two of its four layers, for `next_logits`, whose first argument is a model.
EXAMPLE = TransformerConfig(10_000, 256, d_model=512, num_layers=2, num_heads=16, d_ff=1344)


class FormReport(NamedTuple):
    """What runs for one form of a function.

    Attributes:
        function: dotted name of the function.
        form: device, dtype and autocast.
        runs: name of the substitute, or "as written".
        reason: why the function runs as written; "" if a substitute runs.
        error: the largest relative error of the substitute that the comparison allows; None where it does not run.
        speedup: time of the function as written over time of the substitute; None where it was not measured.
    """

    function: str
    form: str
    runs: str
    reason: str
    error: float | None
    speedup: float | None


def print_study(seconds: float = 0.5, function: str = "") -> None:
    """Print a line for each function and form.

    Args:
        seconds: how long to measure each form for; 0 measures nothing.
        function: a part of the dotted names of the functions to list; all if left out.

    Raises:
        UserError: no replaceable function has such a name, or the time is negative.
    """
    if seconds < 0:
        raise UserError(f"seconds is {seconds}, but it must be 0 or more: change --seconds")
    if not any(function in name for name in SUBSTITUTES):
        raise UserError(f"function is {function!r}, which no replaceable function has in its name: give a part of one "
                        f"of {', '.join(SUBSTITUTES)}")
    state = "open" if door.is_open() else "shut (TSLM_FAST=0)"
    print(f"The door is {state}. A substitute runs if it agrees with the function as it is written: on probes,\n"
          "results and gradients of the two differ by a relative error of at most `within`.\n")
    print(f"{'function':<36}{'form':<26}{'runs':<42}{'within':>8}{'faster':>8}")
    for row in reports(seconds, function):
        speedup = "" if row.speedup is None else f"{row.speedup:.1f}×"
        error = "" if row.error is None else f"{row.error:g}"
        print(f"{row.function.removeprefix('tslm.'):<36}{row.form:<26}{row.runs:<42}{error:>8}{speedup:>8}", flush=True)
        if row.reason:
            print(f"    {row.reason}")


def reports(seconds: float, function: str = "") -> Iterator[FormReport]:
    """Compare and measure every substitute that this machine can run; yield a report for each function and form.

    Args:
        seconds: how long to measure each form for; 0 measures nothing.
        function: a part of the names of the functions to report on.
    """
    for name, places in SUBSTITUTES.items():
        if function not in name:
            continue
        importlib.import_module(name.rpartition(".")[0])
        rows = list(_rows(name, places, seconds))
        yield from rows or [FormReport(name, "every form", "as written", "", None, None)]


def _rows(name: str, places: tuple[Place, ...], seconds: float) -> Iterator[FormReport]:
    plain = door.functions()[name].plain
    for key, case in _examples(name, places):
        with autocast(key):
            chosen = door.choose(name, *case.arguments)
        reason, speedup, error, runs = "", None, None, "as written"
        for place in places:
            if (substitute := door.load(place)) is not None and substitute.function is chosen:
                runs, error = f"{place.module.removeprefix('tslm.')}.{chosen.__name__}", substitute.tolerance(key)
        if chosen is plain:
            reason = _reason(name, places, key) if door.is_open() else "the door is shut"
        elif seconds:
            speedup = _seconds(plain, case, key, seconds) / _seconds(chosen, case, key, seconds)
        yield FormReport(name, _form(key), runs, reason, error, speedup)


def _reason(name: str, places: tuple[Place, ...], key: Hashable) -> str:
    """Return why the first substitute for the device of a form does not run."""
    for place in places:
        if place.device in ("", _device(key)) and door.load(place) is not None:
            return door.disagreement(name, place, key)
    return ""


def _examples(name: str, places: tuple[Place, ...]) -> Iterator[tuple[Hashable, door.Case]]:
    """Yield the forms that exist on this machine, each with arguments of realistic size."""
    for substitute in dict.fromkeys(map(door.load, places)):  # one substitute may serve several devices
        if substitute is None:
            continue
        if name == "tslm.generation.decoding.next_logits":
            torch.manual_seed(0)
            model = TransformerLM(EXAMPLE).eval()
            if (model_form := substitute.supports(model, 1, 64)) is not None:
                _keep_alive.append(model)
                yield model_form, door.Case((model, 1, 64), _twenty_steps)
        elif substitute.examples is not None:
            for key in list(substitute.keys()):
                yield key, substitute.examples(key)


def _twenty_steps(next_logits: Callable[[dict[int, list[int]]], Any]) -> None:
    with torch.inference_mode():
        for end in range(1, 21):
            next_logits({0: list(range(end))})


_keep_alive: list[object] = []  # a key holds its model weakly


def _seconds(function: Callable[..., Any], case: door.Case, key: Hashable, budget: float) -> float:
    """Return the median time of a call in seconds, including the backward pass if there is one."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - started < budget:
        begin = time.perf_counter()
        with autocast(key):
            result = case.finish(function(*case.arguments))
        if isinstance(result, torch.Tensor) and result.requires_grad:
            result.sum().backward()
        if _device(key) == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])  # the first call warms up


def autocast(key: Hashable) -> torch.autocast:
    """Return the context in which calls of a form run."""
    dtype = getattr(key, "autocast", None)
    return torch.autocast(_device(key), dtype or torch.bfloat16, enabled=dtype is not None)


def _device(key: Hashable) -> str:
    return getattr(key, "device", "cpu")


def _form(key: Hashable) -> str:
    dtype, autocast = getattr(key, "dtype", None), getattr(key, "autocast", None)
    if dtype is None:
        return str(key)
    return f"{_device(key)} " + " → ".join(str(each).removeprefix("torch.") for each in (dtype, autocast) if each)
