"""The door between the core and its substitutes: which form of a function runs.

The core marks a function as replaceable:

    @replaceable
    def rms_norm(x, gain, eps): ...

At the first call on a device and dtype the door looks for a substitute in `table.py`, runs both on small probes, and
compares values and gradients. If they agree, the substitute runs from then on. If they do not, somebody has edited the
function (or a compiler is wrong): the function runs as it is written, and one warning says so.

With `TSLM_FAST=0` in the environment, or inside `with shut():`, every function runs as it is written.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from tslm.fast.table import SUBSTITUTES, Place

P = ParamSpec("P")
R = TypeVar("R")


class DisagreementWarning(UserWarning):
    """A substitute does not compute what the function computes, or cannot be built, so the function itself runs."""


class UnavailableError(RuntimeError):
    """A substitute cannot run on this machine; the message says why, for instance that there is no compiler."""


@dataclass(frozen=True)
class Case:
    """One probe: arguments for both forms, and what to do with their results before they are compared.

    Attributes:
        arguments: positional arguments; tensors that require a gradient are compared in their gradients too.
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
            dtype, whatever else selects other code), or None if the substitute is not made for such arguments.
        probes: returns the cases that are compared for a key. May raise UnavailableError.
        tolerance: largest relative error (see `agreement.relative_error`) for a key; 0 means equal.
        precise: returns, for a key of low precision, another one that must agree as well. Otherwise the tolerance of
            bfloat16 would hide a small change of a formula.
        probed: returns the function that is compared for a key, if that is not `function`.
        traceable: whether torch.compile may see it, because it is an operator registered with torch.
        examples: arguments of realistic size for a key, to measure what the substitute gains.
        keys: the keys that exist on this machine, for the listing.
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
    """A function of the core behind the door; `plain` is the function as it is written."""

    plain: Callable[P, R]
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the substitute, or the function itself."""


_functions: dict[str, Replaceable[..., Any]] = {}  # by dotted name
_substitutes: dict[Place, Substitute | None] = {}
_disagreements: dict[tuple[Place, Hashable], str] = {}  # why a substitute is not taken, "" if it is
_for_compiler: dict[tuple[str, str], Callable[..., Any]] = {}  # what torch.compile sees, by function and device
_warned: set[str] = set()  # functions, and messages about missing substitutes, that the user has been told of
_UNAVAILABLE = "functions run as they are written, or by slower substitutes, because"
_shut_depth = 0


def replaceable(function: Callable[P, R]) -> Replaceable[P, R]:
    """Let the door decide at each call whether a function or a substitute for it runs.

    The function stays available as `.plain`. What the door compares substitutes with is whatever `.plain` is.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    torch = sys.modules.get("torch")
    is_compiling: Callable[[], bool] = torch.compiler.is_compiling if torch is not None else _never

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_compiling():
            return cast(R, _for_compiler.get((name, _device_of(args)), function)(*args, **kwargs))
        return cast(R, choose(name, *args, **kwargs)(*args, **kwargs))

    door = cast(Replaceable[P, R], call)
    door.plain = function
    _functions[name] = door
    return door


def choose(name: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:  # noqa: ANN401 - any function's arguments
    """Return the form of a function that runs for these arguments: the first substitute that supports and agrees."""
    plain = _functions[name].plain
    if not is_open():
        return plain
    device = _device_of(args)
    for place in SUBSTITUTES.get(name, ()):
        if place.device != device or (substitute := load(place)) is None:
            continue
        key = substitute.supports(*args, **kwargs)
        if key is not None and disagreement(name, place, key) == "":
            return substitute.function
    return plain


def disagreement(name: str, place: Place, key: Hashable) -> str:
    """Return why a substitute does not run for a key, or "" if it agrees; compares at the first question only."""
    if (place, key) not in _disagreements:
        substitute = load(place)
        assert substitute is not None
        _disagreements[place, key] = ""  # a probe may pass through the door itself
        precise = substitute.precise(key)
        reason = "" if precise is None else disagreement(name, place, precise)
        message = ""
        if not reason:
            reason, message = _compare(name, substitute, key)
        _disagreements[place, key] = reason
        if not reason:
            if substitute.traceable:
                _for_compiler[name, place.device] = substitute.function
        elif message and name not in _warned and message not in _warned:
            _warned.update((message,) if message.startswith(_UNAVAILABLE) else (name,))
            warnings.warn(message, DisagreementWarning, stacklevel=4)
    return _disagreements[place, key]


def _compare(name: str, substitute: Substitute, key: Hashable) -> tuple[str, str]:
    """Return the reason why a substitute is not taken, "" if it is, and what to tell the user about it."""
    from tslm.fast.agreement import difference

    try:
        reason = difference(_functions[name].plain, substitute, key)
    except UnavailableError as error:
        return str(error), f"{_UNAVAILABLE} {error}"
    return reason, f"{name} runs as it is written, without its substitute, because {reason}"


def load(place: Place) -> Substitute | None:
    """Import a substitute; None where a library that it needs, such as Triton, is not installed."""
    if place not in _substitutes:
        try:
            _substitutes[place] = getattr(importlib.import_module(place.module), place.attribute)
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.partition(".")[0] == "tslm":
                raise
            _substitutes[place] = None
    return _substitutes[place]


def _device_of(args: tuple[Any, ...]) -> str:
    """The device type of the first argument, or of its first element; "" if that is no tensor."""
    first = args[0] if args else None
    if isinstance(first, list | tuple) and first:
        first = first[0]
    device = getattr(first, "device", None)
    return getattr(device, "type", "")


def is_open() -> bool:
    """Whether substitutes may run at all."""
    return not _shut_depth and os.environ.get("TSLM_FAST", "1") != "0"


@contextlib.contextmanager
def shut() -> Iterator[None]:
    """Run every function as it is written, for the time of a `with` block."""
    global _shut_depth
    _shut_depth += 1
    try:
        yield
    finally:
        _shut_depth -= 1


def forget() -> None:
    """Compare again at the next call of each function, because a function has changed."""
    _disagreements.clear()
    _for_compiler.clear()
    _warned.clear()


def functions() -> dict[str, Replaceable[..., Any]]:
    """Return every replaceable function that has been imported so far, by dotted name."""
    return dict(_functions)


def _never() -> bool:
    return False
