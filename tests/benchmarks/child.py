"""Runs one function in a process of its own, for `measure.run_alone`: name and arguments come in, the result goes out.

What the function or a library prints goes to stderr, so that stdout holds the result alone.
"""

import importlib
import json
import os
import sys


def main() -> None:
    """Call the function `argv[1]`, written `module:name`, with the JSON object `argv[2]`; print its result as JSON."""
    result_to = os.dup(1)
    os.dup2(2, 1)  # also for what is printed by other languages than Python
    module, name = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    with os.fdopen(result_to, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
