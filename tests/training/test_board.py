"""What TensorBoard gets: the layout of the curves, the floor, settings with results; and the picture of the curves."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.test_cli import TEXT
from tslm.__main__ import main
from tslm.data.texts import TOY_VALID_SEED
from tslm.data.toy import sample_stories


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache_dir):
    folder = tmp_path_factory.mktemp("board")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--data.toy_stories=300", f"--data.cache_dir={cache_dir}", "--data.vocab_size=300",
                     "--data.context_length=32", "--data.batch_size=4", "--model.d_model=16", "--model.num_layers=1",
                     "--model.num_heads=2", "--model.d_ff=32", "--trainer.max_tokens=null", "--trainer.max_steps=6",
                     "--trainer.val_every_n_steps=3", "--trainer.log_every_n_steps=2", "--generation.max_new_tokens=4",
                     "--trainer.limit_val_batches=2", "--data.num_workers=1"]) == 0
    return folder / "lightning_logs" / "version_0"


@pytest.fixture(scope="module")
def events(run):
    accumulator = EventAccumulator(str(run))
    accumulator.Reload()
    return accumulator


def test_losses_are_one_chart_with_the_floor_over_steps_and_tokens(events):
    content = events.summary_metadata["custom_scalars__config__"].plugin_data.content
    content = content or events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(content)
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["over steps"] == ["train/loss", "valid/loss", "valid/floor"]
    assert all(tag in events.Tags()["scalars"] for tags in charts.values() for tag in tags)
    assert [event.step for event in events.Scalars("over_tokens/train_loss")] == [2 * 128, 3 * 128, 4 * 128, 6 * 128]
    assert [event.step for event in events.Scalars("over_tokens/valid_loss")] == [3 * 128, 6 * 128]


def test_the_floor_is_a_line_at_the_exact_value(events):
    points = events.Scalars("valid/floor")
    assert [point.step for point in points] == [0, 3, 6]
    values = {point.value for point in points}
    assert len(values) == 1
    stories = sample_stories(500, TOY_VALID_SEED)
    assert 0 < values.pop() < -sum(story.log_prob for story in stories) / sum(len(s.text.split()) for s in stories)


def test_settings_have_the_final_results_and_no_curve_is_disturbed(events):
    found = HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content).session_start_info.hparams
    assert found["model.d_model"].number_value == 16
    assert found["optimizer.class_path"].string_value == "Muon"
    assert not any(name.startswith(("generation", "checkpoint")) for name in found)
    assert events.Scalars("result/valid_loss")[0].value == pytest.approx(events.Scalars("valid/loss")[-1].value)
    assert [event.step for event in events.Scalars("valid/loss")] == [3, 6]


def test_flat_cards_are_left_out_and_utilisation_is_a_share(events):
    tags = events.Tags()["scalars"]
    assert "train/tokens_seen" not in tags
    assert "train/skipped_steps" not in tags
    assert all(0 < event.value < 1.5 for event in events.Scalars("train/flops_utilisation"))


def test_a_finished_run_leaves_a_picture_of_its_curves(run):
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture_and_no_error(project, tiny, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert main(["fit", "--config", TEXT, *tiny]) == 0
    assert not (project / "lightning_logs" / "version_0" / "curves.png").exists()
