"""Forward and backward pass of a training step as one CUDA graph: recorded once, then launched by a single call.

A step of a small model is a thousand short kernels, and Python needs longer to launch them than a GPU to run them. A
graph replays the same kernels on the same addresses, so batches are copied to where the first one lay, and loss and
gradients always appear in the same place. Tested with recorders that work on a CPU; run on an H200.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

WARM_UP = 3  # runs before recording, in which kernels are compiled and given their workspaces
Run = Callable[[], None]


class CudaStep:
    """The loss of a batch and its gradients by a recorded graph, or kernel by kernel where none can be recorded.

    Call it with a batch for the loss, then `backward` for the gradients. In between the parameters' own gradients must
    be set to None, as Lightning does it.

    Args:
        loss_of: computes the mean loss of inputs and targets, by the same kernels for every batch of one shape.
        parameters: get the gradients.
    """

    def __init__(self, loss_of: Callable[[Tensor, Tensor], Tensor], parameters: Iterable[Tensor]) -> None:
        self._loss_of, self._parameters = loss_of, list(parameters)
        self._batch: tuple[Tensor, Tensor] | None = None  # where the graph reads, from the first call on
        self._replay: Run | None = None
        self._loss = torch.zeros(())  # where it writes, as are the gradients
        self._gradients: list[Tensor | None] = []
        self._replayed = False

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, which holds until the next call; a graph makes the gradients as well."""
        if self._batch is None:
            self._batch = inputs.clone(), targets.clone()
            self._replay = self._try_to_record()
        self._replayed = self._replay is not None and self._batch[0].shape == inputs.shape
        if self._replay is None or not self._replayed:
            return self._loss_of(inputs, targets)
        for place, tensor in zip(self._batch, (inputs, targets), strict=True):
            place.copy_(tensor)
        self._replay()
        return self._loss

    def backward(self, loss: Tensor) -> None:
        """Give every parameter its gradient of the loss that was returned last."""
        if not self._replayed:
            loss.backward()
            return
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _run(self) -> None:
        """What is recorded. Where no gradients were, the new ones are written and not added: nothing must be zeroed."""
        assert self._batch is not None
        self._drop_gradients()
        loss = self._loss_of(*self._batch)
        with torch.autocast(loss.device.type, enabled=False):  # as without a graph; what the forward pass chose holds
            loss.backward()
        self._loss, self._gradients = loss.detach(), [parameter.grad for parameter in self._parameters]

    def _try_to_record(self) -> Run | None:
        try:
            return record_cuda_graph(self._run)
        except Exception as error:  # CUDA's, a compiler's, or that of an operation which waits for the device
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            print(f"No CUDA graph, so a step is launched kernel by kernel: {reason}", flush=True)
            return None
        finally:
            self._drop_gradients()

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


def record_cuda_graph(run: Run) -> Run:
    """Run a function a few times on a side stream, as CUDA demands, then record it; return the graph's replay.

    Autocast keeps its bfloat16 copies of the weights for as long as its context lasts. They are dropped before the
    recording, or the graph would never copy the weights again, and behind it, or others would take the graph's.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.clear_autocast_cache()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    finally:
        torch.clear_autocast_cache()
    return graph.replay


def applies(device: torch.device, alone: bool, accumulate: int, scaled: bool) -> bool:
    """Whether training can run by a graph: on one GPU, with one batch a step, and a loss that nothing scales.

    Several processes, or a wrapper made for them, exchange gradients in the middle of the backward pass; a loss scaler
    changes its factor.
    """
    return device.type == "cuda" and alone and accumulate == 1 and not scaled
