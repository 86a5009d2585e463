"""Steps by a recorded graph, with recorders that work on a CPU: the same bits, the same gradients, and the fallback."""

from contextlib import contextmanager

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit, make_module, weights
from tslm.training import cuda_step, module
from tslm.training.cuda_step import CudaStep, applies, record_cuda_graph


def record(run):
    """Does on a CPU what recording does: a few runs, and the last one can be had again."""
    run()
    run()
    return run


def broken(run):
    run()
    raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


@pytest.fixture
def with_graphs(monkeypatch):
    """Lets every training record its steps, by a recorder of the test's choice."""

    def use(recorder):
        monkeypatch.setattr(module, "applies", lambda device, alone, *rest: alone)
        monkeypatch.setattr(cuda_step, "record_cuda_graph", recorder)

    return use


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("recorder", [record, broken])
def test_training_by_a_graph_has_the_same_bits(tmp_path, data, with_graphs, capsys, recorder, precision):  # noqa: F811
    plain, _ = fit(tmp_path / "plain", data, 12, val_every_n_steps=5, precision=precision)
    with_graphs(recorder)
    recorded, _ = fit(tmp_path / "graph", data, 12, val_every_n_steps=5, precision=precision)
    assert torch.equal(weights(plain), weights(recorded))
    warning = "No CUDA graph, so a step is launched kernel by kernel: operation not permitted when stream is capturing"
    assert capsys.readouterr().out.splitlines().count(warning) == (recorder is broken)


def test_a_graph_reads_and_writes_in_the_same_place(monkeypatch):
    monkeypatch.setattr(cuda_step, "record_cuda_graph", record)
    language, seen = make_module(), []

    def loss_of(inputs, targets):
        seen.append((inputs.data_ptr(), inputs.clone()))
        return language.mean_loss(inputs, targets)

    step = CudaStep(loss_of, language.parameters())
    for seed in range(3):
        tokens = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(seed))
        batch = tokens[:, :-1], tokens[:, 1:]
        loss = step(*batch)
        language.zero_grad()
        step.backward(loss / 1)
        gradients = [parameter.grad.clone() for parameter in language.parameters()]
        expected = language.mean_loss(*batch)
        language.zero_grad()
        expected.backward()
        assert torch.equal(loss, expected)
        for parameter, gradient in zip(language.parameters(), gradients, strict=True):
            assert torch.equal(parameter.grad, gradient)
        assert torch.equal(seen[-1][1], batch[0])
    assert len({place for place, _ in seen}) == 1


def test_a_batch_of_another_shape_goes_without_the_graph(monkeypatch):
    monkeypatch.setattr(cuda_step, "record_cuda_graph", record)
    language = make_module()
    step = CudaStep(language.mean_loss, language.parameters())
    tokens = torch.randint(0, 300, (2, 9))
    step(tokens[:, :-1], tokens[:, 1:])
    loss = step(tokens[:, :4], tokens[:, 1:5])
    assert loss.requires_grad
    step.backward(loss)
    assert all(parameter.grad is not None for parameter in language.parameters())


def test_recording_warms_up_elsewhere_and_drops_what_autocast_keeps(monkeypatch):
    events = []

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            events.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            events.append("replay")

    @contextmanager
    def inside(what):
        events.append(f"into {type(what).__name__}")
        yield
        events.append(f"out of {type(what).__name__}")

    for name, fake in {
        "Stream": Stream, "current_stream": lambda: Stream("main"), "stream": inside, "CUDAGraph": Graph,
        "graph": inside,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: events.append("clear"))
    record_cuda_graph(lambda: events.append("run"))()
    assert events == [
        "side waits for main", "into Stream", "run", "run", "run", "out of Stream", "main waits for side", "clear",
        "into Graph", "run", "out of Graph", "clear", "replay",
    ]


@pytest.mark.parametrize(("device", "alone", "accumulate", "scaled", "expected"), [
    ("cuda", True, 1, False, True), ("cpu", True, 1, False, False), ("cuda", False, 1, False, False),
    ("cuda", True, 4, False, False), ("cuda", True, 1, True, False),
])
def test_who_trains_by_a_graph(device, alone, accumulate, scaled, expected):
    assert applies(torch.device(device), alone, accumulate, scaled) is expected
