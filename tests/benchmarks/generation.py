"""`python -m tests.benchmarks.generation`: speed of generation beside transformers and the limits of the machine.

Each figure is one JSON line on stdout, printed as soon as it is measured, with the keys `name`, `ours`, `peer`,
`peer_name`, `ratio` (`ours` / `peer`), `target`, `holds` and `runs`. A table follows on stderr. All sides run in turn,
and the medians count. The model has the course's sizes (vocabulary 10,000, context 256, d_model 512, 4 layers, 16
heads, d_ff 1344) and random weights, so its nucleus is most of the vocabulary. `batch_N_vs_best` has the target; its
peer is the fastest form of transformers. `pip install -e '.[bench]'` installs transformers.
--mode takes away from this process what other machines lack.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median

import torch

from tests.benchmarks import generation_forms as forms
from tests.benchmarks.measure import Figure, Target, exit_code, is_installed, machine, markdown, table
from tests.modes import add_mode, enter
from tslm.errors import UserError
from tslm.fast.cpu.decoder import kernel_dtype
from tslm.model import TransformerConfig

TARGETS = {1: 2.5, 32: 5.0}  # least ratio to the best peer, by batch size
_LARGE = 2**28  # bytes; many times the size of a processor's cache
_READS = 5  # reads per run; the fastest counts


def main(arguments: Sequence[str] | None = None, config: TransformerConfig = forms.COURSE) -> int:
    """Measure the figures and return the exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    enter(options.mode, "tests.benchmarks.generation", arguments)
    return exit_code(lambda: _measure(options, config))


def _measure(options: argparse.Namespace, config: TransformerConfig) -> None:
    figures = []
    for figure in _figures(options, config):
        print(figure.json_line(), flush=True)
        figures.append(figure)
    conditions = f"{machine(['tslm', 'torch', 'transformers'])}, {torch.get_num_threads()} threads, mode {options.mode}"
    print(f"{table(figures)}\n{conditions}", file=sys.stderr)
    if options.markdown:
        print(f"{markdown(figures)}\n\n{conditions}")


def _figures(options: argparse.Namespace, config: TransformerConfig) -> Iterator[Figure]:
    longest = config.context_length - options.prompt
    if min(options.runs, options.prompt, *options.batch) < 1 or not 1 <= options.tokens <= longest:
        raise UserError(f"--runs, --prompt and --batch must be above 0, and --tokens 1 to {longest}: prompt and "
                        f"tokens share a context of {config.context_length}")
    if not is_installed("transformers"):
        raise UserError("transformers is not installed: run `pip install -e '.[bench]'`")
    if options.threads:
        torch.set_num_threads(options.threads)
    model = forms.tslm_model(config, options.seed)
    dtype = kernel_dtype(model) or torch.float32
    sides = {"tslm": forms.tslm_form(model, options.seed)}
    for form in [*forms.FORMS, *(forms.COMPILED if options.compiled else [])]:
        sides[form.name] = forms.transformers_form(config, form, options.seed)
    for batch in options.batch:
        yield from _batch(options, config, batch, sides, dtype)


def _batch(options: argparse.Namespace, config: TransformerConfig, batch: int, sides: dict[str, forms.Generate],
           dtype: torch.dtype) -> Iterator[Figure]:
    """Yield the speeds for one batch size, then the limit: reading weights for one sequence, else multiplying."""
    draw = random.Random(options.seed)
    prompts = [[draw.randrange(config.vocab_size) for _ in range(options.prompt)] for _ in range(batch)]
    size = forms.weight_bytes(config, dtype.itemsize)
    product, flops = forms.multiply(config, dtype)
    limits: dict[str, tuple[float, Callable[[], object]]] = {
        "memory": (_LARGE / 1e9, forms.read(_LARGE)), "weights": (size / 1e9, forms.read(size)),
        "matmul": (flops / 1e9, product)}
    speeds: dict[str, list[float]] = {name: [] for name in [*sides, *limits]}
    for generate in sides.values():  # warm-up; a static cache is compiled for its length
        generate(prompts, options.tokens if options.compiled else 1)
    for _ in range(options.runs):
        for name, generate in sides.items():
            speeds[name].append(batch * options.tokens / _seconds(partial(generate, prompts, options.tokens)))
        for name, (amount, work) in limits.items():
            speeds[name].append(amount / min(_seconds(work) for _ in range(_READS)))
    found = {name: median(values) for name, values in speeds.items()}
    ours = found["tslm"]
    peers = {name: found[name] for name in sides if name != "tslm"}
    for name, peer in peers.items():
        yield Figure(f"batch_{batch}_vs_{name}", "tokens/s", ours, peer, "transformers", None, options.runs)
    best = max(peers, key=peers.__getitem__)
    target = Target("ratio", ">=", TARGETS[batch]) if batch in TARGETS else None
    yield Figure(f"batch_{batch}_vs_best", "tokens/s", ours, peers[best], f"transformers, {best}", target, options.runs)
    if batch == 1:
        for name, what in (("memory", "reading 256 MB"), ("weights", "reading as many bytes as the weights have")):
            yield Figure(f"batch_1_of_{name}", "GB/s", ours * size / 1e9, found[name], what, None, options.runs)
    else:
        multiplied = ours * 2 * size / dtype.itemsize / 1e9
        yield Figure(f"batch_{batch}_of_matmul", "GFLOP/s", multiplied, found["matmul"], "torch's matmul, 1,024 rows",
                     None, options.runs)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.generation", description=(__doc__ or "").partition("\n\n")[2]
    )
    add = parser.add_argument
    add("--batch", type=int, nargs="+", default=[1, 32], help="batch sizes (default: 1 32)")
    add("--tokens", type=int, default=200, help="new tokens per sequence (default: 200)")
    add("--prompt", type=int, default=8, help="tokens of each prompt (default: 8)")
    add("--runs", type=int, default=3, help="runs on each side (default: 3)")
    add("--seed", type=int, default=0, help="seed of weights, prompts and sampling (default: 0)")
    add("--threads", type=int, help="threads of every side (default: torch's choice)")
    add_mode(parser)
    add("--compiled", action="store_true", help="also run transformers through torch.compile, which takes minutes")
    add("--markdown", action="store_true", help="also print a Markdown table at the end")
    return parser


if __name__ == "__main__":
    sys.exit(main())
