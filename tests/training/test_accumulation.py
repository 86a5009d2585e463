"""Steps in micro-batches: their sizes, the gradients and losses of the whole batch, memory, and earlier settings."""

import weakref
from pathlib import Path

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import fit, make_module, make_trainer, weights
from tests.training.test_trainer import make
from tslm.data.batches import Batches, default_micro_batch, split_batch
from tslm.data.datamodule import TextDataModule
from tslm.errors import UserError
from tslm.loops.bare import BareDriver
from tslm.training.checkpoint import fit_part, read_checkpoint
from tslm.training.metrics import StepMetrics
from tslm.training.module import LanguageModule
from tslm.training.saved_settings import read_settings
from tslm.training.settings import GenerationSettings, OptimizerSettings, translate_batch_settings

OLD = Path(__file__).parent / "fixtures" / "before_micro_batch_size.ckpt"


@pytest.mark.parametrize(("windows", "context_length", "device", "expected"), [
    (16, 256, "cpu", 16),  # 4,096 tokens
    (17, 256, "cpu", 1),  # 17 is prime
    (20, 256, "cpu", 5),  # 8 windows have 2,048 tokens; 5 is the largest divisor of 20 below
    (64, 256, "cpu", 8), (64, 512, "cpu", 4), (6, 256, "cpu", 6), (3, 5000, "cpu", 1), (64, 256, "cuda", 64),
])
def test_the_default_size_of_a_micro_batch(windows, context_length, device, expected):
    assert default_micro_batch(windows, context_length, device) == expected


@pytest.mark.parametrize(("options", "expected"), [
    ({}, (8, 8)), ({"world_size": 2}, (8, 4)), ({"world_size": 4}, (16, 1)), ({"device_type": "cuda"}, (64, 1)),
    ({"micro_batch_size": 2}, (2, 32)), ({"micro_batch_size": 2, "world_size": 2, "device_type": "cuda"}, (2, 16)),
])
def test_processes_and_micro_batches_share_the_windows_of_a_step(options, expected):
    size, accumulate = split_batch(64, 256, **options)
    assert (size, accumulate) == expected
    assert size * accumulate * options.get("world_size", 1) == 64


@pytest.mark.parametrize(("batch_size", "options", "sentence"), [
    (6, {"micro_batch_size": 4},
     "data.batch_size is 6, but with data.micro_batch_size 4 it must be a multiple of 4: give --data.batch_size 4 or "
     "8, or another --data.micro_batch_size"),
    (6, {"micro_batch_size": 4, "world_size": 2},
     "data.batch_size is 6, but with data.micro_batch_size 4 on 2 processes it must be a multiple of 8: give "
     "--data.batch_size 8, or another --data.micro_batch_size, or another --trainer.devices"),
    (5, {"world_size": 2},
     "data.batch_size is 5, but on 2 processes it must be a multiple of 2: give --data.batch_size 4 or 6, or another "
     "--trainer.devices"),
])
def test_a_batch_that_cannot_be_split_is_an_error_with_the_nearest_choices(batch_size, options, sentence):
    with pytest.raises(UserError) as error:
        split_batch(batch_size, 32, **options)
    assert str(error.value) == sentence


def test_a_micro_batch_has_a_window():
    with pytest.raises(UserError, match=r"data\.micro_batch_size is 0: give --data\.micro_batch_size at least 1"):
        TextDataModule(micro_batch_size=0)


def test_a_stated_accumulation_is_answered_by_the_options_to_give(tmp_path, data):  # noqa: F811
    trainer = make_trainer(tmp_path, 1, accumulate_grad_batches=3)
    with pytest.raises(UserError, match=r"accumulate_grad_batches is 3, but accumulation follows from .*: give "
                                        r"--data\.batch_size 12 and --data\.micro_batch_size 4 instead"):
        trainer.fit(make_module(), datamodule=data())
    assert list(tmp_path.iterdir()) == []


def test_other_data_accumulates_as_stated(tmp_path, data):  # noqa: F811
    stream = data()
    stream.setup("fit")
    batches = [stream.windows.batch(index, 4) for index in range(8)]
    trainer = make_trainer(tmp_path, 3, accumulate_grad_batches=2, log_every_n_steps=1)
    trainer.fit(make_module(), Batches(batches), Batches(batches))
    assert trainer.global_step == 3
    assert trainer.accumulate_grad_batches == 2


def batch(windows, length=12):
    generator = torch.Generator().manual_seed(windows)
    return torch.randint(0, 300, (2, windows, length), generator=generator).unbind(0)


def gradients_of(module, size, windows=6, dtype=torch.float32):
    """Return the loss and the gradients of one step of the bare loop in micro-batches of a size."""
    parts = zip(*(side.split(size) for side in batch(windows)), strict=True)
    kept = []
    made = module.make_optimizer(1)
    driver = BareDriver(
        module, made["optimizer"], made["lr_scheduler"]["scheduler"], parts, accumulate=windows // size, max_norm=None,
        autocast=lambda: torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    )
    made["optimizer"].register_step_pre_hook(lambda *_: kept.extend(each.grad for each in module.parameters()))
    driver.train_step()
    return driver.loss, kept


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"loss_chunk_size": 5}])
@pytest.mark.parametrize("size", [3, 2, 1])
def test_loss_and_gradients_equal_those_of_the_whole_batch(options, size):
    torch.testing.assert_close(gradients_of(make(**options), size), gradients_of(make(**options), 6))


def test_in_bfloat16_they_differ_by_its_rounding():
    _, exact = gradients_of(make(), 6)
    errors = []
    for size in (6, 2):
        _, rounded = gradients_of(make(), size, dtype=torch.bfloat16)
        errors.append(sum((a - b).square().sum() for a, b in zip(rounded, exact, strict=True)).sqrt())
    assert 0 < errors[1] < 1.2 * errors[0]


def test_the_mask_between_documents_holds_in_each_micro_batch():
    def with_separator(size, separator):
        module = make()
        module.separator = separator
        return gradients_of(module, size)

    separator = int(batch(6)[0][3, 4])
    torch.testing.assert_close(with_separator(2, separator), with_separator(6, separator))
    assert with_separator(2, separator)[0] != with_separator(2, None)[0]


def test_fewer_numbers_are_kept_for_the_backward_pass():
    class Kept:
        now = most = 0

        def __init__(self, tensor):
            self.tensor = tensor
            Kept.now += tensor.numel()
            Kept.most = max(Kept.most, Kept.now)

        def __del__(self):
            Kept.now -= self.tensor.numel()

    def most_kept(size):
        Kept.now = Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            gradients_of(make(), size, windows=64)
        return Kept.most

    assert most_kept(4) < most_kept(64) / 4


@pytest.mark.parametrize(("given", "sizes"), [(99, [99, 99, 2]), (None, [50] * 4), (200, [200])])
def test_validation_splits_its_batches(given, sizes):
    module, seen = make(), []
    module.micro_batch_size = given
    mean_loss = module.mean_loss
    module.mean_loss = lambda inputs, targets: seen.append(len(inputs)) or mean_loss(inputs, targets)
    windows = batch(200, length=32)  # 6,400 tokens
    with torch.no_grad():
        module.validation_step(windows, 0)
        expected = mean_loss(*windows).double() * 6400
    assert seen == sizes
    torch.testing.assert_close(module.valid_nats, expected, rtol=1e-6, atol=0)
    assert module.valid_tokens == 6400


@pytest.mark.parametrize("sizes", [(None, 1), (None, 2)])
def test_a_run_in_micro_batches_ends_where_the_whole_one_does(tmp_path, data, sizes):  # noqa: F811
    ends = [weights(fit(tmp_path / str(size), data, 3, windows=(4, size), limit_val_batches=0)[0]) for size in sizes]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_last_step_s_gradients_are_freed_before_the_next_forward_pass(tmp_path, data, accumulate):  # noqa: F811
    module, alive = make(), []
    training_step = module.training_step

    def watched(batch, batch_idx):
        alive.append({each.grad is not None for each in module.parameters()})
        return training_step(batch, batch_idx)

    module.training_step = watched
    fit(tmp_path, data, 2, module=module, windows=(4, 4 // accumulate), limit_val_batches=0)
    assert alive == [{False}, {True}][:accumulate] * 2


def test_the_bare_loop_frees_the_graph_of_a_micro_batch_before_the_next_forward_pass():
    class Marker:
        pass

    module, markers, alive = make(), [], []
    training_step = module.training_step

    def watched(batch, batch_idx):
        alive.append([marker() is not None for marker in markers])
        loss = training_step(batch, batch_idx)
        loss.grad_fn.metadata["marker"] = marker = Marker()  # lives as long as the node of the graph
        markers.append(weakref.ref(marker))
        return loss

    module.training_step = watched
    gradients_of(module, 2)
    assert alive == [[], [False], [False, False]]


@pytest.mark.parametrize(("old", "batch_size", "micro_batch_size"), [
    ({"trainer.accumulate_grad_batches": 4, "trainer.devices": 2}, 128, 16),
    ({"trainer.accumulate_grad_batches": 1, "trainer.devices": "auto"}, 16, None),
    ({"trainer.devices": [0, 1, 2], "trainer.num_nodes": 2}, 96, 16),
    ({"trainer.devices": -1, "model.micro_batch_size": 6}, 16, 2),
    ({"model.micro_batch_size": 99}, 16, None), ({"model.micro_batch_size": None}, 16, None),
    ({"data.micro_batch_size": None, "trainer.accumulate_grad_batches": 4}, 16, None),  # saved by this version
])
def test_settings_of_earlier_versions_are_translated(old, batch_size, micro_batch_size):
    new = translate_batch_settings({"data.batch_size": 16} | old)
    assert (new["data.batch_size"], new["data.micro_batch_size"]) == (batch_size, micro_batch_size)
    assert "model.micro_batch_size" not in new
    if "data.micro_batch_size" not in old:
        assert new.get("trainer.accumulate_grad_batches", 1) == 1


def test_a_run_of_an_earlier_version_resumes_with_the_same_windows(tmp_path, story_file, cache_dir):
    """The version before `data.micro_batch_size` trained it; its own run went on to the losses below.

    That was `fit` with batch_size 2, accumulate_grad_batches 3, vocab_size 264, context_length 16, d_model and d_ff 8,
    one layer of two heads, lr 1e-2, max_steps 4, val_every_n_steps 2, limit_val_batches 3, on `story_file`.
    """
    saved, _ = read_settings(fit_part(read_checkpoint(OLD), OLD))

    def options(group):
        return {key.removeprefix(f"{group}."): value for key, value in saved.items() if key.startswith(f"{group}.")}

    assert (saved["data.batch_size"], saved["data.micro_batch_size"]) == (6, 2)
    metrics = StepMetrics()
    trainer = make_trainer(tmp_path, 4, callbacks=[metrics], log_every_n_steps=1,
                           limit_val_batches=saved["trainer.limit_val_batches"],
                           accumulate_grad_batches=saved["trainer.accumulate_grad_batches"])
    module = LanguageModule(264, 16, **options("model"), optimizer=OptimizerSettings(**options("optimizer")),
                            generation=GenerationSettings(max_new_tokens=4))
    stories = story_file.read_bytes()
    cut = stories.index(b"<|endoftext|>\n", len(stories) - len(stories) // 20 - 13) + 14  # it held out the end
    files = tmp_path / "train.txt", tmp_path / "valid.txt"
    files[0].write_bytes(stories[:cut])
    files[1].write_bytes(stories[cut:])
    texts = {"train_files": [str(files[0])], "valid_files": [str(files[1])], "cache_dir": str(cache_dir)}
    text = TextDataModule(**options("data") | texts)
    trainer.fit(module, datamodule=text, ckpt_path=str(OLD))
    assert metrics.tokens_seen == 4 * 6 * 16  # restored by the callback's name, then counted on
    assert metrics.latest["train_loss"] == pytest.approx(5.5134358406066895, abs=2e-6)
    assert metrics.latest["valid_loss"] == pytest.approx(5.461350440979004, abs=2e-6)
