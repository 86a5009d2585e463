"""`LanguageModule` and `TextDataModule` in a script of somebody's own, with a stock `lightning.Trainer`."""

import csv
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from tests.loops.conftest import data  # noqa: F401 (a fixture)
from tests.loops.test_lightning import make_module, make_trainer, weights
from tslm.errors import UserError
from tslm.optim import AdamW
from tslm.training.module import LanguageModule
from tslm.training.run_files import check_checkpoint
from tslm.training.settings import GenerationSettings, OptimizerSettings

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .* does not have many workers", "ignore:`isinstance.treespec", "ignore:The number of training batches",
    "ignore:Be aware that when using `ckpt_path`", "ignore:You're resuming from a checkpoint",
    "ignore:Experiment logs directory",
)


def stock(folder, **options):
    defaults = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
                "default_root_dir": str(folder), "num_sanity_val_steps": 0, "limit_val_batches": 2,
                "use_distributed_sampler": False, "gradient_clip_val": 1.0}
    return pl.Trainer(**defaults | options)


class Seen(pl.Callback):
    """Keeps the inputs of every batch, and the learning rates."""

    def __init__(self):
        self.batches, self.rates = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch[0].clone())
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_script_of_thirty_lines(tmp_path, story_file, cache_dir):
    """What a person writes who knows Lightning and nothing of tslm's trainer."""
    from tslm.data.datamodule import TextDataModule

    data_module = TextDataModule(train_files=[str(story_file)], cache_dir=str(cache_dir), vocab_size=300,
                                 context_length=32, batch_size=4, num_workers=1)
    torch.manual_seed(0)
    module = LanguageModule(vocab_size=300, context_length=32, d_model=16, num_layers=1, num_heads=2, d_ff=32,
                            optimizer=OptimizerSettings(lr=1e-2), generation=GenerationSettings(max_new_tokens=4))
    best = ModelCheckpoint(dirpath=tmp_path / "best", monitor="valid/loss", filename="best")
    trainer = pl.Trainer(
        max_epochs=2, limit_train_batches=20, accelerator="cpu", logger=CSVLogger(tmp_path), log_every_n_steps=5,
        callbacks=[best, EarlyStopping("valid/loss", patience=5)], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=3,
    )
    trainer.fit(module, datamodule=data_module)
    assert trainer.global_step == 40
    assert set(trainer.callback_metrics) >= {"train/loss", "valid/loss", "valid/perplexity", "valid/bits_per_byte"}
    with open(trainer.logger.log_dir + "/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["valid/loss"]) for row in rows if row["valid/loss"]]
    assert len(losses) == 2
    assert losses[1] < losses[0] < 5.8
    loaded = LanguageModule.load_from_checkpoint(best.best_model_path)
    assert trainer.validate(loaded, datamodule=data_module, verbose=False)[0]["valid/loss"] == pytest.approx(losses[1])
    assert loaded.optimizer_settings == module.optimizer_settings
    assert loaded.complete_prompts(["Once"])[0].text


def test_ten_steps_are_those_of_our_trainer(tmp_path, data):  # noqa: F811
    ours, theirs = make_module(), make_module()
    make_trainer(tmp_path, 10, limit_val_batches=0).fit(ours, datamodule=data())
    stock(tmp_path, max_steps=10, limit_val_batches=0).fit(theirs, datamodule=data())
    assert torch.equal(weights(ours), weights(theirs))


def test_epochs_have_the_tokens_of_the_text_and_other_windows_each(tmp_path, data):  # noqa: F811
    seen, data_module = Seen(), data(batch_size=32)
    trainer = stock(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[seen])
    trainer.fit(make_module(), datamodule=data_module)
    per_epoch = (len(data_module.train_tokens) - 1) // 32 // 32
    assert len(seen.batches) == 2 * per_epoch == trainer.global_step
    for number, batch in enumerate(seen.batches):
        assert torch.equal(batch, data_module.windows.batch(number, 32)[0])


def test_cut_epochs_do_not_repeat_their_batches_and_the_schedule_spans_all(tmp_path, data):  # noqa: F811
    seen = Seen()
    stock(tmp_path, max_epochs=3, limit_train_batches=4, limit_val_batches=0, callbacks=[seen]).fit(
        make_module(), datamodule=data())
    assert len({batch.numpy().tobytes() for batch in seen.batches}) == 12
    assert seen.rates == pytest.approx([OptimizerSettings(lr=1e-2).rate(12)(step) for step in range(12)])


@pytest.mark.parametrize("budget", [{"max_time": "00:00:00:01"}, {"max_epochs": -1, "limit_train_batches": 3}])
def test_without_a_budget_in_steps_the_rate_stays_and_a_warning_says_so(budget, tmp_path, data):  # noqa: F811
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *rest):
            trainer.should_stop = trainer.global_step >= 110

    seen = Seen()
    with pytest.warns(UserWarning, match="no budget in steps or epochs"):
        stock(tmp_path, limit_val_batches=0, callbacks=[seen, Stop()], **budget).fit(
            make_module(), datamodule=data())
    assert seen.rates[:2] == pytest.approx([0, 1e-4])
    assert set(seen.rates[100:]) <= {1e-2}


def test_a_stock_run_resumes_with_its_schedule(tmp_path, data):  # noqa: F811
    whole, half = Seen(), Seen()
    stock(tmp_path / "a", max_steps=8, limit_val_batches=0, callbacks=[whole]).fit(make_module(), datamodule=data())
    options = {"max_steps": 8, "limit_val_batches": 0}
    saving = ModelCheckpoint(tmp_path / "c", every_n_train_steps=4, save_top_k=-1)
    first = stock(tmp_path / "b", **options, callbacks=[saving])
    first.fit(make_module(), datamodule=data())
    path = next((tmp_path / "c").glob("*step=4.ckpt"))
    stock(tmp_path / "d", **options, callbacks=[half]).fit(make_module(), datamodule=data(), ckpt_path=str(path))
    assert half.rates == pytest.approx(whole.rates[4:])
    for ours, theirs in zip(half.batches, whole.batches[4:], strict=True):
        assert torch.equal(ours, theirs)


def test_validation_totals_begin_anew_each_time(tmp_path, data):  # noqa: F811
    trainer, module = stock(tmp_path, max_steps=1, limit_val_batches=3), make_module()
    first, second = (trainer.validate(module, datamodule=data(), verbose=False)[0]["valid/loss"] for _ in range(2))
    assert first == second
    assert module.valid_tokens == 3 * 4 * 32


def test_a_diverged_training_ends(tmp_path, data):  # noqa: F811
    module = make_module()
    before = module.training_loss
    module.training_loss = lambda *batch: before(*batch) * math.nan
    with pytest.raises(UserError, match="so the training has diverged"):
        stock(tmp_path, max_steps=50, log_every_n_steps=5).fit(module, datamodule=data())
    assert weights(module).isfinite().all()


@pytest.mark.parametrize("overfit", [2, 0.3])
def test_overfitting_repeats_the_first_batches(overfit, tmp_path, data):  # noqa: F811
    seen = Seen()
    trainer = stock(tmp_path, max_epochs=3, overfit_batches=overfit, limit_val_batches=0, callbacks=[seen])
    trainer.fit(make_module(), datamodule=data(batch_size=64))
    kept = [batch.numpy().tobytes() for batch in seen.batches]
    assert kept == kept[: len(kept) // 3] * 3
    assert len(set(kept)) == (2 if overfit == 2 else int(0.3 * len(trainer.train_dataloader)))


def test_parts_that_do_not_fit_together_are_refused(tmp_path, data):  # noqa: F811
    data_module = data()
    small = LanguageModule(vocab_size=200, context_length=32, d_model=16, num_layers=1, num_heads=2, d_ff=32)
    with pytest.raises(UserError, match=r"the model has vocab_size 200, but the tokenizer of the data has \d+ tokens"):
        stock(tmp_path, max_steps=1).fit(small, datamodule=data_module)
    alone = data()
    alone.prepare_data()
    alone.setup("fit")
    for loader in (alone.train_dataloader, alone.val_dataloader):
        with pytest.raises(UserError, match="give it to one as datamodule="):
            loader()
    with pytest.raises(UserError, match=r"gradient_clip_algorithm is 'value', but only 'norm' is implemented"):
        stock(tmp_path, max_steps=1, gradient_clip_algorithm="value").fit(make_module(), datamodule=data())


class OwnOptimizer(LanguageModule):
    """Makes its optimizer itself, without a schedule and with a rate that is not in the settings."""

    def configure_optimizers(self):
        return AdamW(self.parameters(), 3e-3, (0.9, 0.95), 1e-8, 0.1)


@pytest.mark.parametrize("make", [stock, lambda folder, max_steps, **_: make_trainer(folder, max_steps)])
def test_a_subclass_that_makes_its_optimizer_resumes(tmp_path, data, make):  # noqa: F811
    def fit(folder, steps, ckpt_path=None):
        torch.manual_seed(0)
        module = OwnOptimizer(300, 32, 16, 2, 2, 32)
        fitting = make(tmp_path / folder, max_steps=steps, enable_checkpointing=False)
        fitting.fit(module, datamodule=data(), ckpt_path=ckpt_path)
        fitting.save_checkpoint(tmp_path / f"{folder}.ckpt")
        return module, fitting

    whole, _ = fit("whole", 6)
    fit("half", 3)
    resumed, fitting = fit("resumed", 6, str(tmp_path / "half.ckpt"))
    assert fitting.global_step == 6
    assert fitting.optimizers[0].param_groups[0]["lr"] == 3e-3
    assert torch.equal(weights(whole), weights(resumed))

    check_checkpoint(tmp_path / "half.ckpt")  # as `runs --verify` does
    with pytest.raises(UserError, match="holds the state of an optimizer that a subclass of the module made"):
        make(tmp_path / "other", max_steps=6, enable_checkpointing=False).fit(
            LanguageModule(300, 32, 16, 2, 2, 32), datamodule=data(), ckpt_path=str(tmp_path / "half.ckpt"))
