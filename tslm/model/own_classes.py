"""Imports the classes of a user's own: a layer, an optimizer, a schedule."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from tslm.errors import UserError


def import_named(name: str, option: str) -> Callable[..., Any]:
    """Return what `module.Name` names. Modules in the current folder are found too.

    The name must come from the user, never from a file that others may have written: an import runs code.

    Args:
        name: the dotted name.
        option: the option that has this value, for messages.

    Raises:
        UserError: there is no such module or no such name in it, the import fails, or it is nothing to call.
    """
    module_name, _, attribute = name.rpartition(".")
    if "" not in sys.path:
        sys.path.append("")  # a console command, unlike `python -m`, does not search the current folder
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UserError(f"{option} is {name}, but there is no module {error.name!r}: give module.Name, with the "
                        "module in this folder or installed") from error
    except AttributeError as error:
        raise UserError(f"{option} is {name}, but the module {module_name} has no {attribute!r}: correct --{option}"
                        ) from error
    except Exception as error:  # whatever the user's file raises
        raise UserError(f"{option} is {name}, but importing {module_name} fails: {type(error).__name__}: {error}"
                        ) from error
    if not callable(found):
        raise UserError(f"{option} is {name}, which is no class or function: correct --{option}")
    return found  # type: ignore[no-any-return]
