"""The jobs of the benchmark of training. Each job is one function that runs in a new process (see `measure.run_alone`).

Each function imports only what it needs and returns JSON. A step is complete: it draws windows, computes gradients,
clips, and updates the weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.benchmarks import training_peers
from tests.benchmarks.training_peers import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from tslm.training.module import LanguageModule

SHAPES: dict[str, Shape] = {
    # The course's model, 22.7M parameters.
    "course": {"vocab_size": 10_000, "context_length": 256, "d_model": 512, "num_layers": 4, "num_heads": 16,
               "d_ff": 1344},
    # The model of configs/quickstart.yaml, 1.1M parameters; a step there has 6 windows.
    "quickstart": {"vocab_size": 2048, "context_length": 256, "d_model": 128, "num_layers": 3, "num_heads": 4,
                   "d_ff": 352},
    # The model of loss_parity, 3.3M parameters.
    "small": {"vocab_size": 4096, "context_length": 256, "d_model": 192, "num_layers": 4, "num_heads": 6, "d_ff": 512},
    # The model of configs/text.yaml, 5.3M parameters.
    "text": {"vocab_size": 4096, "context_length": 256, "d_model": 256, "num_layers": 4, "num_heads": 8, "d_ff": 704},
    # A step of about 10 ms at a batch of 8, to measure the cost of the loop around it.
    "quick": {"vocab_size": 512, "context_length": 64, "d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 176},
    # For tests of the benchmark itself.
    "tiny": {"vocab_size": 300, "context_length": 16, "d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 32},
}
OURS = "tslm"
DEFAULT_FORM = {"cpu": "eager", "cuda": "compiled"}  # how `fit` runs on a device by default
RECOMPUTED = "recomputed"  # eager; blocks are computed again in the backward pass
WHOLE = "whole batch"  # eager, without micro-batches
WARM_UP = 2  # steps that do not count: they compile, and allocate the optimizer's state
GROUP = 20  # steps on a GPU between two clock readings; synchronising after each step would add the CPU's time
_TOKENS = 1_000_000  # length of the random text from which windows are drawn
_QUICK_BATCH = 8
_FIRST_STEPS = 10  # steps of a Trainer that do not count, because files are opened


def train(
    side: str, form: str, shape: str, batch_size: int, steps: int, seed: int, compiled: str, device: str,
    precision: str = "auto",
) -> dict[str, Any]:
    """Take `WARM_UP` + `steps` optimizer steps and time each; on a GPU, time each `GROUP` of steps.

    Args:
        side: `OURS` or one of `training_peers.PACKAGES`.
        form: "eager", "compiled", `RECOMPUTED` or `WHOLE` for tslm; one of `training_peers.FORMS` for a peer.
        shape: Key of `SHAPES`.
        batch_size: Windows in a step.
        steps: Number of steps that count.
        seed: Seed of windows and weights.
        compiled: Folder that keeps compiled code between processes.
        device: "cpu" or "cuda".
        precision: "bf16", "fp32", or "auto", which is what `fit` chooses on this machine.

    Returns:
        `seconds` of each step, and `peak_bytes`: the largest resident set of the process, with its libraries; on a GPU
        the largest memory that torch has reserved there.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled  # must be set before torch is imported
    make_step = _our_step if side == OURS else _peer_step(side)
    batches = _batches(SHAPES[shape], batch_size, seed, device)
    step = make_step(form, SHAPES[shape], batches, seed, device, _in_bfloat16(precision, device))
    if device == "cpu":
        return {"seconds": [_seconds(step) for _ in range(WARM_UP + steps)], "peak_bytes": _peak_bytes()}
    import torch

    def group() -> None:
        for _ in range(GROUP):
            step()
        torch.cuda.synchronize()

    seconds = [_seconds(group) / GROUP for _ in range(WARM_UP + steps)]
    return {"seconds": seconds, "peak_bytes": torch.cuda.max_memory_reserved()}


def _in_bfloat16(precision: str, device: str) -> bool:
    from tslm.fast.forms import cpu_multiplies_bfloat16

    return precision == "bf16" or (precision == "auto" and (device == "cuda" or cpu_multiplies_bfloat16()))


def _peer_step(peer: str) -> Callable[..., Callable[[], None]]:
    return partial(training_peers.step_of, peer)


def _our_step(
    form: str, shape: Shape, batches: Iterator[Any], seed: int, device: str, bfloat16: bool
) -> Callable[[], None]:
    """Return the step of the bare loop on the module that `fit` trains; on a GPU, as a CUDA graph."""
    import torch

    from tslm.data.batches import split_batch
    from tslm.loops.bare import BareDriver
    from tslm.training.machine import keep_freed_memory
    from tslm.training.module import LanguageModule

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
        max_norm=training_peers.MAX_NORM, autocast=lambda: torch.autocast(device, torch.bfloat16, enabled=bfloat16),
    )

    def step() -> None:
        driver.train_step()
        if module.compiled != (form == "compiled"):
            raise RuntimeError(f"the step did not run {form}")

    return step


def _batches(shape: Shape, batch_size: int, seed: int, device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of windows of random tokens without end, the same on all sides."""
    import numpy as np
    import torch

    from tslm.data.batches import TrainBatches
    from tslm.data.device_windows import DeviceWindows
    from tslm.data.windows import WindowStream

    ids = np.random.default_rng(seed).integers(0, shape["vocab_size"], _TOKENS, dtype=np.uint16)
    stream = WindowStream(ids, shape["context_length"], seed)
    windows = stream if device == "cpu" else DeviceWindows(stream, torch.device(device))
    return iter(TrainBatches(windows, batch_size, lambda: 0, 0, 1))


def matmul_seconds(shape: str, batch_size: int, passes: int, device: str, precision: str = "auto") -> float:
    """Return the seconds that all matmuls of one step take. No step can be faster.

    Each matmul has the shape that it has in the model. A weight (out, in) needs one product in the forward pass and two
    in the backward pass; W_q, W_k and W_v are one weight, and so are W_1 and W_3. Attention needs two products in the
    forward pass and four in the backward pass. They count half, because half of each is masked
    (`TransformerLM.flops_per_token` counts in the same way).
    """
    import torch

    from tslm.training.machine import keep_freed_memory

    if device == "cpu":
        keep_freed_memory()  # otherwise page faults of the results would count
    sizes, dtype = SHAPES[shape], torch.bfloat16 if _in_bfloat16(precision, device) else torch.float32
    context, width, inner, layers = (sizes[name] for name in ("context_length", "d_model", "d_ff", "num_layers"))
    rows, heads = batch_size * context, sizes["num_heads"]
    weights = [(3 * width, width, layers), (width, width, layers), (2 * inner, width, layers), (width, inner, layers),
               (sizes["vocab_size"], width, 1)]

    def filled(*size: int) -> Tensor:
        return torch.randn(size, dtype=dtype, device=device)

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
    """Train through the bare loop and through a `lightning.Trainer` with its loggers, in turn, in float32.

    The data source reads the clock, because both drivers draw one batch per step. So neither driver carries code for
    the measurement. The mean over the steps of a training counts, because reports are written every few steps.

    Returns:
        Milliseconds per step of each training, as lists `bare` and `lightning`.
    """
    import logging
    import warnings

    import torch

    from tslm.loops.bare import BareDriver, train
    from tslm.training.module import LanguageModule
    from tslm.training.trainer import StepTrainer

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="The 'train_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
    sizes = SHAPES[shape]

    def module() -> LanguageModule:
        torch.manual_seed(seed)
        return LanguageModule(**sizes)

    def bare(batches: TimedBatches) -> None:
        plain = module()
        made = plain.make_optimizer(steps)
        train(BareDriver(plain, made["optimizer"], made["lr_scheduler"]["scheduler"], iter(batches)), steps)

    def lightning(batches: TimedBatches) -> None:
        trainer = StepTrainer(max_steps=steps, precision="32-true", accelerator="cpu", devices=1, limit_val_batches=0,
                              default_root_dir=folder, enable_progress_bar=progress)
        trainer.fit(module(), train_dataloaders=batches)

    sides: dict[str, Callable[[TimedBatches], None]] = {"bare": bare, "lightning": lightning}
    milliseconds: dict[str, Any] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            batches = TimedBatches(_batches(sizes, _QUICK_BATCH, seed))
            run(batches)
            counted = batches.times[_FIRST_STEPS:steps]  # a Trainer draws one more batch in advance
            milliseconds[name].append(1000 * (counted[-1] - counted[0]) / (len(counted) - 1))
    return milliseconds


class TimedBatches:
    """Batches with the time at which each one was requested."""

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
    """Return the peak resident set size of this process.

    Raises:
        OSError: This system has no /proc/self/status.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        raise OSError("peak memory is read from /proc/self/status, missing on this system: measure it on Linux")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
