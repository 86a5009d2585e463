"""Imports what users write themselves, a layer, an optimizer or a schedule, and finds the line in it that failed."""

from __future__ import annotations

import importlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
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
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{option} is {name}, but there is no module {error.name!r}: give module.Name, with the "
                        "module in this folder or installed") from error
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise UserError(f"{option} is {name}, but importing {module_name} fails: {type(error).__name__}: {error}"
                        ) from error
    if not hasattr(module, attribute):
        place = getattr(module, "__file__", "built in")
        raise UserError(f"{option} is {name}, but the module {module_name} ({place}) has no {attribute!r}: correct "
                        f"--{option}, or give a file of your own another name")
    found = getattr(module, attribute)
    if not callable(found):
        raise UserError(f"{option} is {name}, which is no class or function: correct --{option}")
    return found  # type: ignore[no-any-return]


def failed_line(error: BaseException) -> str | None:
    """Return the line of the user's own file that raised an exception, itself or in a library that it called.

    None if the last caller outside of libraries is tslm.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(Path(__file__).parents[1]):
            return None
        is_library = re.search(r"[/\\](site|dist)-packages[/\\]", frame.filename) or path.is_relative_to(
            sysconfig.get_path("stdlib"))
        if not is_library and path.is_file():
            return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
    return None
