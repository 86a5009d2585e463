"""Steps by a recorded graph: bit-identical to steps as written, and the fallback. On a CPU a recorder replays calls."""

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit, make_module, weights
from tslm.loops.bare import BareDriver, train
from tslm.loops.lightning import StepCallback
from tslm.training.cuda_graph import GraphStep, graph_supported


def record(run):
    """Do on a CPU what recording does: run a few times, and return a function that does the same again."""
    run()
    run()
    return run


def broken(run):
    run()
    raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


def batches(count, length=9):
    for seed in range(count):
        tokens = torch.randint(0, 300, (2, length), generator=torch.Generator().manual_seed(seed))
        yield tokens[:, :-1], tokens[:, 1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recorder", [record, broken])
def test_training_by_a_graph_is_bit_identical(capsys, recorder, dtype):
    def trained(graph):
        module = make_module()
        if graph:
            module.use_cuda_graph(True, recorder)
        made = module.make_optimizer(12)
        driver = BareDriver(
            module, made["optimizer"], made["lr_scheduler"]["scheduler"], batches(12),
            autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        )
        train(driver, 12)
        return weights(module)

    assert torch.equal(trained(graph=False), trained(graph=True))
    notice = "No CUDA graph, so a step is launched kernel by kernel: operation not permitted when stream is capturing"
    assert capsys.readouterr().out.splitlines().count(notice) == (recorder is broken)


def test_a_graph_reads_and_writes_the_same_addresses():
    language, seen = make_module(), []

    def loss_of(inputs, targets):
        seen.append((inputs.data_ptr(), inputs.clone()))
        return language.mean_loss(inputs, targets)

    step = GraphStep(loss_of, language.parameters(), record)
    for batch in batches(3):
        loss = step(*batch)
        language.zero_grad()
        step.backward(loss)
        gradients = [parameter.grad.clone() for parameter in language.parameters()]
        expected = language.mean_loss(*batch)
        language.zero_grad()
        expected.backward()
        assert torch.equal(loss, expected)
        for parameter, gradient in zip(language.parameters(), gradients, strict=True):
            assert torch.equal(parameter.grad, gradient)
        assert torch.equal(seen[-1][1], batch[0])
    assert len({address for address, _ in seen}) == 1


def test_a_batch_of_another_shape_runs_without_the_graph():
    language = make_module()
    step = GraphStep(language.mean_loss, language.parameters(), record)
    step(*next(batches(1)))
    loss = step(*next(batches(1, length=5)))
    assert loss.requires_grad
    step.backward(loss)
    assert all(parameter.grad is not None for parameter in language.parameters())


@pytest.mark.parametrize(("device", "alone", "accumulate", "scaled", "expected"), [
    ("cuda", True, 1, False, True), ("cpu", True, 1, False, False), ("cuda", False, 1, False, False),
    ("cuda", True, 4, False, False), ("cuda", True, 1, True, False),
])
def test_a_graph_is_used_on_one_gpu_without_accumulation(device, alone, accumulate, scaled, expected):
    assert graph_supported(torch.device(device), alone, accumulate, scaled) is expected


class SyncIsAnError(StepCallback):
    """Lets CUDA raise an error where the CPU waits for the GPU, in the third and fourth step."""

    def on_train_batch_start(self, trainer, *rest):
        torch.cuda.set_sync_debug_mode("error" if trainer.global_step in (2, 3) else "default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("align_documents", [False, True])
def test_a_step_on_a_gpu_never_waits_for_it_and_equals_a_step_without_a_graph(
    tmp_path, data, monkeypatch, align_documents  # noqa: F811
):
    def run(name):
        options = {"accelerator": "gpu", "log_every_n_steps": 6, "limit_val_batches": 1, "precision": "bf16-mixed"}
        module, _ = fit(tmp_path / name, lambda **given: data(align_documents=align_documents, **given), 6,
                        callbacks=[SyncIsAnError()], **options)
        return weights(module.cpu())

    recorded = run("graph")
    monkeypatch.setattr("tslm.training.module.graph_supported", lambda *arguments, **named: False)
    torch.testing.assert_close(run("plain"), recorded, rtol=1e-3, atol=1e-4)
