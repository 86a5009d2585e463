"""The door between the core and its substitutes: which form of a function runs.

The core marks a function as replaceable:

    @replaceable
    def rms_norm(x, gain, eps): ...

At the first call on a device and dtype the door looks for a substitute in `table.py`, runs both on small probes, and
compares values and gradients. If they agree, the substitute runs from then on. If they differ, the function has been
edited (or a compiler is wrong): the function runs as it is written, and a warning says so, once for each function.

A change that shows on no probe is not noticed, for instance one that only matters beyond the 330 positions of the
longest probe of attention. With `TSLM_FAST=0` in the environment, or inside `with shut():`, every function runs as it
is written.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from tslm.fast.table import SUBSTITUTES, Place

P = ParamSpec("P")
R = TypeVar("R")


class DisagreementWarning(UserWarning):
    """A substitute does not compute what its function computes, cannot be built, or cannot be kept."""


class UnavailableError(RuntimeError):
    """A substitute cannot run on this machine; the message says why, for instance that there is no compiler."""


@dataclass(frozen=True)
class Case:
    """One probe: the arguments of both forms, and a function of their results whose values are compared.

    Attributes:
        arguments: positional arguments; the gradients of tensors that require one are compared too.
        finish: applied to the result of each form, for functions that return a callable object.
    """

    arguments: tuple[Any, ...]
    finish: Callable[[Any], Any] = field(default=lambda result: result)


@dataclass(frozen=True)
class Substitute:
    """A faster form of one function of the core.

    Attributes:
        function: called with the same arguments as the function that it replaces.
        supports: called with the arguments of a call; returns the key under which agreement is remembered (device,
            dtype, and whatever else selects other code), or None if the substitute does not support the arguments.
        probes: returns the cases that are compared for a key. May raise UnavailableError.
        tolerance: largest relative error (see `agreement.relative_error`) for a key; 0 means equal.
        precise: returns, for a key of low precision, another key that must agree as well, because the tolerance of
            bfloat16 would hide a small change of a formula; None if there is none.
        probed: returns the function to compare for a key, where it differs from `function`.
        traceable: whether torch.compile may see the substitute, because it is an operator registered with torch.
        examples: returns arguments of realistic size for a key, to measure the speedup.
        keys: returns the keys that exist on this machine, for `study fast`.
    """

    function: Callable[..., Any]
    supports: Callable[..., Hashable | None]
    probes: Callable[[Any], Iterable[Case]]
    tolerance: Callable[[Any], float]
    precise: Callable[[Any], Hashable | None] = field(default=lambda key: None)
    probed: Callable[[Any], Callable[..., Any]] | None = None
    traceable: bool = False
    examples: Callable[[Any], Case] | None = None
    keys: Callable[[], Iterable[Hashable]] = field(default=lambda: ())


class Replaceable(Protocol[P, R]):
    """A replaceable function of the core; `plain` is the function as it is written."""

    plain: Callable[P, R]
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the substitute, or the function itself."""


_functions: dict[str, Replaceable[..., Any]] = {}  # by dotted name
_substitutes: dict[Place, Substitute | None] = {}
_disagreements: dict[tuple[Place, Hashable], str] = {}  # why a substitute does not run, "" if it agrees
# By function and device: the substitutes that were imported, each with the keys for which it agrees.
_candidates: dict[tuple[str, str], list[tuple[Place, Substitute, set[Hashable]]]] = {}
# By function and device: the substitute that torch.compile may see, with the keys for which it has been chosen.
_for_compiler: dict[tuple[str, str], tuple[Substitute, set[Hashable]]] = {}
_warned: set[str] = set()  # functions, and messages about missing substitutes, that a warning has named
_SHUT_BY_ENVIRONMENT = os.environ.get("TSLM_FAST") == "0"  # read once: the door is asked at every call
_shut_depth = 0


def replaceable(function: Callable[P, R]) -> Replaceable[P, R]:
    """Let the door decide at each call whether a function or a substitute for it runs.

    The function stays available as `.plain`, and substitutes are compared with `.plain`.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    torch = sys.modules.get("torch")
    is_compiling: Callable[[], bool] = (lambda: False) if torch is None else torch.compiler.is_compiling

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        """Call the substitute that is chosen for these arguments, or the function as it is written."""
        if is_compiling():
            return cast(R, _choose_for_compiler(name, function, *args, **kwargs)(*args, **kwargs))
        return cast(R, choose(name, *args, **kwargs)(*args, **kwargs))

    wrapped = cast(Replaceable[P, R], call)
    wrapped.plain = function
    _functions[name] = wrapped
    return wrapped


def choose(name: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:  # noqa: ANN401 - any function's arguments
    """Return the form that runs for these arguments: the first substitute that supports them and agrees, or `plain`.

    Args:
        name: dotted name of a replaceable function.
        args: positional arguments of the call; the first one determines the device.
        kwargs: keyword arguments of the call.
    """
    plain = _functions[name].plain
    if not is_open():
        return plain
    where = name, _device_of(args, kwargs)
    if where not in _candidates:
        loaded = [(place, load(place)) for place in SUBSTITUTES.get(name, ()) if place.device == where[1]]
        _candidates[where] = [(place, each, set()) for place, each in loaded if each is not None]
    for place, substitute, agreed in _candidates[where]:
        key = substitute.supports(*args, **kwargs)
        if key in agreed:
            return substitute.function
        if key is not None and disagreement(name, place, key) == "":
            agreed.add(key)
            if substitute.traceable:
                _for_compiler.setdefault(where, (substitute, set()))[1].add(key)
            return substitute.function
    return plain


def _choose_for_compiler(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:  # noqa: ANN401
    """Return the form that torch.compile sees: a traceable substitute that `choose` has taken for such arguments."""
    chosen = _for_compiler.get((name, _device_of(args, kwargs))) if is_open() else None
    if chosen is None:
        return function
    substitute, keys = chosen
    return substitute.function if substitute.supports(*args, **kwargs) in keys else function


def disagreement(name: str, place: Place, key: Hashable) -> str:
    """Return why a substitute does not run for a key, or "" if it agrees. A key is compared once."""
    if (place, key) not in _disagreements:
        substitute = load(place)
        assert substitute is not None
        precise = substitute.precise(key)
        reason = "" if precise is None else disagreement(name, place, precise)
        _disagreements[place, key] = reason or _compare(name, substitute, key)
    return _disagreements[place, key]


def warn_unavailable(error: UnavailableError) -> None:
    """Warn, once for each reason, that a library cannot be had on this machine."""
    warn_once(f"functions run as they are written, or by slower substitutes, because {error}")


def warn_once(message: str) -> None:
    """Warn once, and only in the main process; messages that differ in the names of files only are the same one."""
    key = re.sub(r"\S*/\S*", "", message)
    if key not in _warned and multiprocessing.parent_process() is None and _is_first():
        _warned.add(key)
        warnings.warn(message, DisagreementWarning, stacklevel=7)


def _is_first() -> bool:
    """Whether this is the first process of a training on this machine; the others find the same."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _compare(name: str, substitute: Substitute, key: Hashable) -> str:
    """Return why a substitute does not run, "" if it agrees. If it disagrees, warn, once for each function."""
    from tslm.fast.agreement import difference

    try:
        reason = difference(_functions[name].plain, substitute, key)
    except UnavailableError as error:
        warn_unavailable(error)
        return str(error)
    if reason and name not in _warned and _is_first():
        _warned.add(name)
        message = f"{name} runs as it is written, without its substitute, because {reason}"
        warnings.warn(message, DisagreementWarning, stacklevel=5)
    return reason


def load(place: Place) -> Substitute | None:
    """Import a substitute; return None if a library that it needs, such as Triton, is not installed."""
    if place not in _substitutes:
        try:
            _substitutes[place] = getattr(importlib.import_module(place.module), place.attribute)
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.partition(".")[0] == "tslm":
                raise
            _substitutes[place] = None
    return _substitutes[place]


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return the device type of the first argument, or of its first element; "" if this is no tensor."""
    first = args[0] if args else next(iter(kwargs.values()), None)
    if isinstance(first, list | tuple) and first:
        first = first[0]
    device = getattr(first, "device", None)
    return getattr(device, "type", "")


def is_open() -> bool:
    """Whether substitutes may run at all."""
    return not _shut_depth and not _SHUT_BY_ENVIRONMENT


@contextlib.contextmanager
def shut() -> Iterator[None]:
    """Run every function as it is written inside a `with` block."""
    global _shut_depth
    _shut_depth += 1
    try:
        yield
    finally:
        _shut_depth -= 1


def forget() -> None:
    """Forget all comparisons and warnings, for instance after `.plain` was replaced; the next calls compare again."""
    _disagreements.clear()
    _candidates.clear()
    _for_compiler.clear()
    _warned.clear()


def functions() -> dict[str, Replaceable[..., Any]]:
    """Return every replaceable function that has been imported so far, by dotted name."""
    return dict(_functions)
