"""Run one function and print its result as JSON. `measure.run_alone` starts this module in a new process.

Everything else that the function or a library prints goes to stderr, so that stdout holds only the result.
"""

import importlib
import json
import os
import sys


def main() -> None:
    """Call the function `argv[1]` (as `module:name`) with the keyword arguments in the JSON object `argv[2]`."""
    output = os.dup(1)
    os.dup2(2, 1)  # redirects what C and Rust libraries print, too
    module, name = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    with os.fdopen(output, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
