"""What runs in a process of its own: sizes come in, the seconds of steps, bytes or milliseconds go out.

Each function imports what it needs and nothing else, since it runs in a process of its own (see `measure`); the
results can be written as JSON. Every step is a whole one: it draws its windows, clips, and updates the weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.benchmarks import training_peers
from tests.benchmarks.training_peers import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from tslm.training import LanguageModule

SHAPES: dict[str, Shape] = {
    # The course's model, 22.7M parameters.
    "course": {"vocab_size": 10_000, "context_length": 256, "d_model": 512, "num_layers": 4, "num_heads": 16,
               "d_ff": 1344},
    # 3.3M parameters: what `loss_parity` trains.
    "small": {"vocab_size": 4096, "context_length": 256, "d_model": 192, "num_layers": 4, "num_heads": 6, "d_ff": 512},
    # 5.3M parameters, the model of configs/text.yaml.
    "text": {"vocab_size": 4096, "context_length": 256, "d_model": 256, "num_layers": 4, "num_heads": 8, "d_ff": 704},
    # A step of about 10 ms at a batch of 8, for what a loop costs around it.
    "quick": {"vocab_size": 512, "context_length": 64, "d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 176},
    # For trying the benchmark itself.
    "tiny": {"vocab_size": 300, "context_length": 16, "d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 32},
}
OURS = "tslm"
OUR_FORM = {"cpu": "eager", "cuda": "compiled"}  # of `fit` on a device, unless it is told otherwise
RECOMPUTED = "recomputed"  # eager, with less memory
WHOLE = "whole batch"  # eager, not in micro-batches
WARM_UP = 2  # steps that do not count: the first one compiles, and the optimizer makes its state
GROUP = 20  # steps on a GPU between two looks at the clock: waiting for each would show the processor's part
_TOKENS = 1_000_000  # of the random text that the windows are drawn from
_QUICK_BATCH = 8
_FIRST_STEPS = 10  # of a Trainer's fit, not counted: files are opened


def train(
    side: str, form: str, shape: str, batch_size: int, steps: int, seed: int, compiled: str, device: str
) -> dict[str, Any]:
    """Take `WARM_UP` + `steps` optimizer steps in bf16 and time each; on a GPU, each `GROUP` of steps.

    Args:
        side: `OURS` or one of `training_peers.PACKAGES`.
        form: "eager", "compiled", `RECOMPUTED` or `WHOLE`, or one of `training_peers.FORMS`.
        shape: of `SHAPES`.
        batch_size: windows in a step.
        steps: that count.
        seed: of windows and weights.
        compiled: the folder where compiled code is kept from one process to the next.
        device: "cpu" or "cuda".

    Returns:
        `seconds` of each step, and `peak_bytes`: the process's largest resident set, libraries included, or what torch
        has reserved on the GPU at most.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled  # before torch is imported
    make_step = _our_step if side == OURS else _peer_step(side)
    step = make_step(form, SHAPES[shape], _batches(SHAPES[shape], batch_size, seed, device), seed, device)
    if device == "cpu":
        return {"seconds": [_seconds(step) for _ in range(WARM_UP + steps)], "peak_bytes": _peak_bytes()}
    import torch

    def group() -> None:
        for _ in range(GROUP):
            step()
        torch.cuda.synchronize()

    seconds = [_seconds(group) / GROUP for _ in range(WARM_UP + steps)]
    return {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_reserved()}


def _peer_step(peer: str) -> Callable[[str, Shape, Iterator[Any], int, str], Callable[[], None]]:
    return lambda form, shape, batches, seed, device: training_peers.step_of(peer, form, shape, batches, seed, device)


def _our_step(form: str, shape: Shape, batches: Iterator[Any], seed: int, device: str) -> Callable[[], None]:
    """Return the step of the bare loop over the very module that `fit` trains, on a GPU by its CUDA graph."""
    import torch

    from tslm.data.batches import split_batch
    from tslm.loops.bare import BareDriver
    from tslm.training import LanguageModule
    from tslm.training.malloc import keep_freed_memory

    torch.manual_seed(seed)
    module = LanguageModule(**shape, recompute=form == RECOMPUTED).to(device)
    windows = len(next(batches)[0])
    size, accumulate = (windows, 1) if form == WHOLE else split_batch(
        windows, shape["context_length"], device_type=device)
    parts = (part for batch in batches for part in zip(*(side.split(size) for side in batch), strict=True))
    if form == "compiled":
        module.compile_step()
    if device == "cpu":
        keep_freed_memory()  # as `fit` does
    else:
        module.use_cuda_graph(True)
    made = module.make_optimizer(max_steps=1000)
    driver = BareDriver(
        module, made["optimizer"], made["lr_scheduler"]["scheduler"], parts, accumulate=accumulate,
        max_norm=training_peers.MAX_NORM, autocast=lambda: torch.autocast(device, torch.bfloat16),
    )

    def step() -> None:
        driver.train_step()
        if module.compiled != (form == "compiled"):
            raise RuntimeError(f"the step did not run {form}")

    return step


def _batches(shape: Shape, batch_size: int, seed: int, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Draw windows without end out of random tokens, the same on all sides; no step is faster for what they say."""
    import numpy as np
    import torch

    from tslm.data.batches import TrainBatches
    from tslm.data.device_windows import DeviceWindows
    from tslm.data.windows import WindowStream

    ids = np.random.default_rng(seed).integers(0, shape["vocab_size"], _TOKENS, dtype=np.uint16)
    stream = WindowStream(ids, shape["context_length"], seed)
    windows = stream if device == "cpu" else DeviceWindows(stream, torch.device(device))
    return iter(TrainBatches(windows, batch_size, 0, 0, 1))


def matmul_seconds(shape: str, batch_size: int, passes: int, device: str) -> float:
    """Return the seconds that all matmuls of one step take in bf16: the least that a step can take.

    Each at the shape that the model has: for a weight (out, in) the product of the forward pass and the two of the
    backward, with the weights of W_q, W_k and W_v and those of W_1 and W_3 side by side; for attention the two products
    of the forward pass and the four of the backward, at half their time, since half of them is masked (as
    `TransformerLM.flops_per_token` counts).
    """
    import torch

    from tslm.training.malloc import keep_freed_memory

    if device == "cpu":
        keep_freed_memory()  # or page faults of the results would count as multiplication
    sizes = SHAPES[shape]
    context, width, inner, layers = (sizes[name] for name in ("context_length", "d_model", "d_ff", "num_layers"))
    rows, heads = batch_size * context, sizes["num_heads"]
    weights = [(3 * width, width, layers), (width, width, layers), (2 * inner, width, layers), (width, inner, layers),
               (sizes["vocab_size"], width, 1)]

    def filled(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.bfloat16, device=device)

    def seconds(left: Tensor, right: Tensor) -> float:
        if device == "cpu":
            return _median_seconds(lambda: left @ right, passes)

        def group() -> None:
            for _ in range(GROUP):
                left @ right
            torch.cuda.synchronize()

        return _median_seconds(group, passes) / GROUP

    total = 0.0
    for d_out, d_in, count in weights:
        x, weight, grad = filled(rows, d_in), filled(d_out, d_in), filled(rows, d_out)
        for left, right in ((x, weight.T), (grad, weight), (grad.T, x)):
            total += count * seconds(left, right)
    q, p = filled(batch_size * heads, context, width // heads), filled(batch_size * heads, context, context)
    for left, right, count in ((q, q.mT, 2), (p, q, 2), (p.mT, q, 2)):  # q kᵀ, dO vᵀ; P v, dS k; Pᵀ dO, dSᵀ q
        total += count * layers * seconds(left, right) / 2
    return total


def lightning_cost(progress: bool, steps: int, rounds: int, seed: int, folder: str, shape: str) -> dict[str, Any]:
    """Train through the bare loop and through a `lightning.Trainer` with its loggers, in turn, in fp32.

    The clock stands in the data, which both draw once a step, so that no driver is watched by anything of its own. The
    mean of a training's steps counts, since reports come every few steps and are written less often still.

    Returns:
        Milliseconds a step of each training, as lists `bare` and `lightning`.
    """
    import logging
    import warnings

    import torch

    from tslm.loops.bare import BareDriver, train
    from tslm.training import LanguageModule, StepTrainer

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="The 'train_dataloader' does not have many workers")
    sizes = SHAPES[shape]

    def module() -> LanguageModule:
        torch.manual_seed(seed)
        return LanguageModule(**sizes)

    def bare(draws: Draws) -> None:
        plain = module()
        made = plain.make_optimizer(steps)
        train(BareDriver(plain, made["optimizer"], made["lr_scheduler"]["scheduler"], iter(draws)), steps)

    def lightning(draws: Draws) -> None:
        trainer = StepTrainer(max_steps=steps, precision="32-true", accelerator="cpu", devices=1, limit_val_batches=0,
                              default_root_dir=folder, enable_progress_bar=progress)
        trainer.fit(module(), train_dataloaders=draws)

    sides: dict[str, Callable[[Draws], None]] = {"bare": bare, "lightning": lightning}
    milliseconds: dict[str, Any] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            draws = Draws(_batches(sizes, _QUICK_BATCH, seed))
            run(draws)
            counted = draws.times[_FIRST_STEPS:steps]  # a Trainer draws one more, in advance
            milliseconds[name].append(1000 * (counted[-1] - counted[0]) / (len(counted) - 1))
    return milliseconds


class Draws:
    """Batches that note when each of them is asked for."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self.times: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.times.append(time.perf_counter())
            yield batch


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _median_seconds(call: Callable[[], object], passes: int) -> float:
    call()
    return median(_seconds(call) for _ in range(passes))


def _peak_bytes() -> int:
    """Return the largest resident set that this process has had.

    Raises:
        OSError: this system does not tell.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise OSError("the peak of memory is read from /proc/self/status, which this system lacks; measure on Linux")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
