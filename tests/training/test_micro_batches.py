"""A batch in parts against the batch as a whole: the same loss and gradients, and fewer windows at a time."""

import pytest
import torch

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import make_trainer, weights
from tests.training.test_trainer import make
from tslm.training import LanguageModule, module


def batch(windows, length=12):
    generator = torch.Generator().manual_seed(windows)
    return torch.randint(0, 300, (2, windows, length), generator=generator).unbind(0)


def gradients_of(language, windows=5, dtype=torch.float32):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = language.training_step(batch(windows), 0)
    language.backward(loss)
    return loss.detach(), [each.grad for each in language.parameters()]


def count_windows(language):
    seen, plain = [], language.mean_loss

    def mean_loss(inputs, targets):
        seen.append(len(inputs))
        return plain(inputs, targets)

    language.mean_loss = mean_loss
    return seen


@pytest.mark.parametrize("options", [{}, {"recompute": True}, {"loss_chunk_size": 5}])
@pytest.mark.parametrize(("most", "parts"), [(5, [5]), (4, [3, 2]), (2, [2, 2, 1]), (1, [1] * 5)])
def test_loss_and_gradients_are_those_of_the_whole_batch(options, most, parts):
    whole = gradients_of(make(micro_batch_size=99, **options))
    language = make(micro_batch_size=most, **options)
    seen = count_windows(language)
    torch.testing.assert_close(gradients_of(language), whole)
    assert seen == parts


def test_in_bfloat16_they_differ_by_its_rounding():
    _, exact = gradients_of(make())
    errors = []
    for most in (99, 2):
        _, rounded = gradients_of(make(micro_batch_size=most), dtype=torch.bfloat16)
        errors.append(sum((a - b).square().sum() for a, b in zip(rounded, exact, strict=True)).sqrt())
    assert 0 < errors[1] < 1.2 * errors[0]


def test_a_document_is_attended_by_itself_in_each_part():
    def with_separator(most, separator):
        language = make(micro_batch_size=most)
        language.separator = separator
        return gradients_of(language)

    separator = int(batch(5)[0][3, 4])
    torch.testing.assert_close(with_separator(2, separator), with_separator(99, separator))
    assert with_separator(2, separator)[0] != with_separator(2, None)[0]


def test_frozen_weights_get_no_gradient_and_the_others_theirs():
    def frozen(most):
        language = make(micro_batch_size=most)
        language.model.token_embeddings.requires_grad_(False)
        return gradients_of(language)

    (loss, parts), (whole_loss, whole) = frozen(2), frozen(99)
    assert parts[0] is None
    assert whole[0] is None
    torch.testing.assert_close((loss, parts[1:]), (whole_loss, whole[1:]))


def test_without_gradients_the_loss_is_made_in_parts_too():
    whole, language = make(), make(micro_batch_size=2)
    seen = count_windows(language)
    with torch.no_grad():
        for each in (whole, language):
            each.validation_step(batch(5), 0)
    assert seen == [2, 2, 1]
    torch.testing.assert_close(language.valid_nats, whole.valid_nats, rtol=1e-6, atol=0)
    assert language.valid_tokens == whole.valid_tokens


def test_the_sum_is_scaled_by_what_comes_in_and_added_to_what_is_there():
    whole, language = make(micro_batch_size=99), make(micro_batch_size=2)
    for each in (whole, language):
        for _ in range(2):
            (each.training_loss(*batch(5)) / 4).backward()
    torch.testing.assert_close([p.grad for p in language.parameters()], [p.grad for p in whole.parameters()])


def test_unless_told_otherwise_a_processor_takes_so_many_tokens_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "WHOLE_TOKENS", 48)
    monkeypatch.setattr(module, "MICRO_BATCH_TOKENS", 30)
    language = make()
    seen = count_windows(language)
    gradients_of(language, windows=4)  # of 12
    assert seen == [4]
    gradients_of(language, windows=5)
    assert seen == [4, 2, 2, 1]


def test_fewer_numbers_are_kept_for_the_backward_pass():
    class Kept:
        now = most = 0

        def __init__(self, tensor):
            self.tensor = tensor
            Kept.now += tensor.numel()
            Kept.most = max(Kept.most, Kept.now)

        def __del__(self):
            Kept.now -= self.tensor.numel()

    def most_kept(most):
        Kept.now = Kept.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            gradients_of(make(micro_batch_size=most), windows=64)
        return Kept.most

    assert most_kept(4) < most_kept(64) / 4


def test_a_run_in_parts_ends_where_the_whole_one_does(tmp_path, data):  # noqa: F811
    ends = []
    for most in (99, 3):
        trained = make(micro_batch_size=most)
        seen = count_windows(trained)
        make_trainer(tmp_path / str(most), 3, precision="32-true", limit_val_batches=0).fit(trained, datamodule=data())
        ends.append(weights(trained))
        assert set(seen) == ({4} if most == 99 else {2})
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_last_step_s_gradients_are_gone_when_a_run_computes_the_next_ones(tmp_path, data, accumulate):  # noqa: F811
    trained, alive, plain = make(), [], LanguageModule.training_step

    def training_step(batch, batch_idx):
        alive.append({each.grad is not None for each in trained.parameters()})
        return plain(trained, batch, batch_idx)

    trained.training_step = training_step
    options = {"accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    make_trainer(tmp_path, 2, **options).fit(trained, datamodule=data())
    assert alive == [{False}, {True}][:accumulate] * 2


def test_scaled_losses_are_refused_in_one_sentence(tmp_path, data, monkeypatch):  # noqa: F811
    made = make_trainer(tmp_path, 1)
    monkeypatch.setattr(type(made), "scaler", property(lambda self: object()))
    with pytest.raises(ValueError, match=r"micro_batch_size is 2, but precision \S+ scales its loss"):
        made.fit(make(micro_batch_size=2), datamodule=data())
    assert list(tmp_path.iterdir()) == []
