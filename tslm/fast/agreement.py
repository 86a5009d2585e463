"""Compares two forms of a function: results, gradients, and tensors and numbers in their arguments afterwards.

Tensors are compared by their relative error; everything else must be equal. Where the substitute runs in a
half-precision dtype, the function as written runs in float32, so that one side of the comparison is exact.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, Any

from tslm.fast.door import Substitute, UnavailableError

if TYPE_CHECKING:
    from torch import Tensor


def difference(plain: Callable[..., Any], substitute: Substitute, key: Hashable) -> str:
    """Describe how a substitute differs from a function on its probes; "" if it agrees on all of them.

    Args:
        plain: the function as it is written.
        substitute: the faster form.
        key: the value that the substitute's `supports` returned. If it has an attribute `autocast` that is not None,
            the substitute runs under autocast to this dtype.

    Raises:
        UnavailableError: the substitute cannot run on this machine.
    """
    autocast, tolerance = getattr(key, "autocast", None), substitute.tolerance(key)
    fast = substitute.function if substitute.probed is None else substitute.probed(key)
    with _suspended():
        for case in substitute.probes(key):
            try:
                expected = _outcome(plain, _copied(case.arguments, widen=True), case.finish, None)
            except Exception as error:  # the call itself will show it, with its traceback
                return f"it raises {type(error).__name__} ({error})"
            try:
                found = _outcome(fast, _copied(case.arguments), case.finish, autocast)
            except UnavailableError:
                raise
            except Exception as error:  # a compiler, or a kernel that this device cannot run
                return f"its substitute raises {type(error).__name__} ({error})"
            if len(found) != len(expected):
                return f"its results are {len(expected)} values, the substitute's {len(found)}"
            for pair in zip(expected, found, strict=True):
                if reason := _error(*pair, tolerance):
                    return reason
    return ""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ‖found - expected‖ / ‖expected‖ in the l2 norm; 0 for equal tensors, infinite if shapes or NaNs differ."""
    if found.shape != expected.shape:
        return math.inf
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    same = (found == expected) | (found.isnan() & expected.isnan())  # infinities have no difference
    found, expected = (each.masked_fill(same & ~each.isfinite(), 0.0) for each in (found, expected))
    distance, size = float((found - expected).norm()), float(expected.norm())
    if distance == 0:
        return 0.0
    return math.inf if size == 0 or math.isnan(distance) else distance / size


def _error(expected: object, found: object, tolerance: float) -> str:
    """Describe how two results differ, with the first values of both; "" if they agree."""
    if _is_tensor(expected) and _is_tensor(found):
        error = relative_error(found, expected)  # type: ignore[arg-type]
        if error <= tolerance:
            return ""
        return (f"on a probe it gives {_shown(expected)} and the substitute {_shown(found)}, a relative error of "
                f"{error:.2g} where {tolerance:.2g} is allowed")
    if type(expected) is not type(found) or expected != found:
        return f"on a probe it gives {_shortened(expected)} and the substitute {_shortened(found)}"
    return ""


def _outcome(
    function: Callable[..., Any], arguments: tuple[Any, ...], finish: Callable[[Any], Any], autocast: Any  # noqa: ANN401
) -> list[Any]:
    """Return what a call computes: its results, the gradients of its leaves, and its other arguments afterwards."""
    if "torch" not in sys.modules:
        return [finish(function(*arguments)), *_numbers(arguments)]
    import torch

    leaves = [each for each in _tensors(arguments) if each.requires_grad]
    device = next((each.device.type for each in _tensors(arguments)), "cpu")
    with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None, cache_enabled=False):
        results = list(_parts(finish(function(*arguments))))
        differentiable = [each for each in results if _is_tensor(each) and each.requires_grad]
        gradients: list[Any] = []
        if leaves and differentiable:
            weights = [torch.linspace(-1, 2, each.numel(), dtype=torch.float32, device=each.device).view_as(each)
                       .to(each.dtype) for each in differentiable]
            gradients = list(torch.autograd.grad(differentiable, leaves, weights))
    after = [each for each in _tensors(arguments) if not each.requires_grad]
    return [*results, *gradients, *after, *_numbers(arguments)]


@contextlib.contextmanager
def _suspended() -> Iterator[None]:
    """Suspend the contexts that may surround a call: inference mode, autocast, hooks on saved tensors."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    def identity(tensor: Tensor) -> Tensor:
        """Keep a saved tensor as it is."""
        return tensor

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(identity, identity))
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False) if device == "cpu" or torch.cuda.is_available()
                                else contextlib.nullcontext())
        yield


def _copied(value: Any, widen: bool = False) -> Any:  # noqa: ANN401
    """Copy arguments, so that no form sees what the other has written; `widen` turns half precision to float32."""
    if _is_tensor(value):
        clone = value.detach().clone()
        if widen and clone.is_floating_point() and clone.element_size() < 4:
            clone = clone.float()
        return clone.requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: _copied(each, widen) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_copied(each, widen) for each in value)
    return copy.deepcopy(value) if isinstance(value, set | bytearray) else value


def _parts(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """Flatten tuples, lists and dictionaries that hold tensors; everything else is one part."""
    if isinstance(value, dict) and any(map(_is_tensor, value.values())):
        for each in value.values():
            yield from _parts(each)
    elif isinstance(value, tuple | list) and any(_is_tensor(each) or isinstance(each, dict) for each in value):
        for each in value:
            yield from _parts(each)
    else:
        yield value


def _leaves(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield what tuples, lists and dictionaries hold, at any depth."""
    if isinstance(value, dict | tuple | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _leaves(each)
    else:
        yield value


def _is_number(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a number, or a tensor with a single number: some forms keep a counter in either."""
    return isinstance(value, int | float) or (_is_tensor(value) and value.ndim == 0 and not value.requires_grad)


def _tensors(value: Any) -> list[Tensor]:  # noqa: ANN401
    return [each for each in _leaves(value) if _is_tensor(each) and not _is_number(each)]


def _numbers(value: Any) -> list[float]:  # noqa: ANN401
    return [float(each) for each in _leaves(value) if _is_number(each)]


def _is_tensor(value: object) -> bool:
    loaded = sys.modules.get("torch")  # nothing is a tensor before torch is imported
    return loaded is not None and isinstance(value, loaded.Tensor)


def _shown(tensor: Any) -> str:  # noqa: ANN401
    values = ", ".join(f"{value:.4g}" for value in tensor.detach().flatten()[:3].tolist())
    return f"[{values}, …]" if tensor.numel() > 3 else f"[{values}]"


def _shortened(value: object, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}…"
