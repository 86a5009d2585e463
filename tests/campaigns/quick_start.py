"""`python -m tests.campaigns.quick_start`: how far above the exact floor the quick start ends, for several budgets.

Each training is one JSON line on stdout and in the log; a table on stderr has the mean of each budget over the seeds,
with its standard error. A training that is in the log is not repeated. Trainings run on one thread each, so that two at
a time do not disturb each other. What is learned does not depend on the number of threads, apart from rounding; how
long it takes on your machine does.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tests.benchmarks.measure import ROOT
from tests.campaigns.sweep import read_log, run_missing
from tslm.errors import UserError

KEPT = ("floor_gap", "valid_loss", "steps", "tokens_seen", "tokens_per_second", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trainings that the log does not have, and return the exit code: 0, 2 after a user's mistake, 130."""
    options = _parser().parse_args(arguments)
    try:
        if min(options.tokens) < 1 or options.seeds < 1 or options.jobs < 1:
            raise UserError("--tokens, --seeds and --jobs must be at least 1")
        options.log.parent.mkdir(parents=True, exist_ok=True)
        trials = [{"tokens": tokens, "seed": seed, "options": options.options}
                  for tokens in options.tokens for seed in range(options.seed, options.seed + options.seeds)]
        with ThreadPoolExecutor(options.jobs) as pool, tempfile.TemporaryDirectory() as folder:
            parts = [trials[first :: options.jobs] for first in range(options.jobs)]
            list(pool.map(lambda part: run_missing(part, options.log, lambda trial: train(trial, Path(folder))), parts))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table([line for line in read_log(options.log) if line["options"] == options.options]), file=sys.stderr)
    return 0


def train(trial: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one quick start and return its figures.

    Raises:
        ChildProcessError: The training fails.
    """
    name = f"{trial['tokens']}-{trial['seed']}"
    words = ["fit", "--config", "configs/quickstart.yaml", f"--trainer.max_tokens={trial['tokens']}",
             f"--seed_everything={trial['seed']}", "--name", name, *trial["options"]]
    run = subprocess.run([sys.executable, "-m", "tslm", *words], cwd=folder, capture_output=True, text=True,
                         check=False, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    if run.returncode:
        raise ChildProcessError(f"{' '.join(words)} failed: {run.stderr[-1000:]}")
    summary = json.loads((folder / "lightning_logs" / name / "summary.json").read_text())
    return {key: summary[key] for key in KEPT}


def table(lines: list[dict[str, Any]]) -> str:
    """Format the gaps as a Markdown table, one row for each budget."""
    rows = ["| tokens | seeds | floor_gap |", "|---|---|---|"]
    for tokens in sorted({line["tokens"] for line in lines}):
        gaps = [100 * line["floor_gap"] for line in lines if line["tokens"] == tokens]
        error = f" ± {stdev(gaps) / math.sqrt(len(gaps)):.2f}" if len(gaps) > 1 else ""
        rows.append(f"| {tokens:,} | {len(gaps)} | {fmean(gaps):.2f}{error}% |")
    return "\n".join(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.campaigns.quick_start", description=(__doc__ or "").partition("\n\n")[2]
    )
    add = parser.add_argument
    add("--tokens", type=int, nargs="+", default=[500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000],
        help="budgets (default: 0.5, 1, 2, 4 and 8 million)")
    add("--seed", type=int, default=0, help="first seed (default: 0)")
    add("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    add("--jobs", type=int, default=2, help="trainings at a time (default: 2)")
    add("--options", nargs=argparse.REMAINDER, default=[], help="last: further options of fit for all trainings")
    add("--log", type=Path, default=Path(".cache/campaigns/quick_start.jsonl"),
        help="file of all trainings (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
