"""`python -m tests.benchmarks.training` with tiny models.

The [test] extra does not install litgpt, so the figures that need it are tested with a stand-in for the runs.
"""

import json

import pytest
import torch
import yaml

from tests.benchmarks import training
from tests.benchmarks.measure import Run, run_alone
from tests.benchmarks.training_figures import Training, fastest_in_turn, plans
from tests.benchmarks.training_jobs import OURS, RECOMPUTED, SHAPES, WARM_UP, WHOLE, TimedBatches, matmul_seconds, train
from tests.conftest import ROOT

TINY = ["--shape", "tiny", "--small", "tiny", "--quick", "tiny", "--batch-size", "4", "--memory-batch-size", "8",
        "--steps", "1", "--runs", "1", "--parity-tokens", "640", "--parity-seeds", "1"]
FIT = ("--data.toy_stories=300 --data.vocab_size=300 --data.context_length=32 --data.batch_size=4 --data.num_workers=1 "
       "--model.d_model=16 --model.num_layers=1 --model.num_heads=2 --model.d_ff=32")
KEYS = ["name", "ours", "peer", "peer_name", "ratio", "target", "holds", "runs"]


def in_this_process(function, **arguments):
    """Replace `run_alone` in this process, without another import of torch."""
    return Run(json.loads(json.dumps(function(**json.loads(json.dumps(arguments, default=str))))), 0.0, 0)


def figures_of(output):
    return {figure["name"]: figure for figure in map(json.loads, output.splitlines())}


@pytest.mark.slow
def test_each_figure_without_a_peer_is_one_json_line(tmp_path, capsys):
    names = ["lightning_cost_with_bar", "first_step"]
    arguments = [*TINY, "--fit-options", FIT, "--workdir", str(tmp_path), "--only", *names]
    assert training.main(arguments) == 0
    output, errors = capsys.readouterr()
    figures = figures_of(output)
    assert list(figures) == names
    for figure in figures.values():
        assert list(figure)[: len(KEYS)] == KEYS
        assert figure["form"] == "eager"
        assert figure["holds"] is (figure["ours"] <= float(figure["target"].split()[2]))
        assert figure["name"] in errors
    cost = figures["lightning_cost_with_bar"]
    assert cost["bare_ms"] > 0
    assert cost["runs"] == 5
    first = figures["first_step"]
    assert first["ours"] == pytest.approx(first["command_s"] - first["import_s"])
    assert first["import_s"] > 0.1
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


@pytest.mark.slow
def test_two_trainings_at_once(tmp_path, capsys):
    arguments = [*TINY, "--fit-options", FIT, "--workdir", str(tmp_path), "--only", "two_at_once"]
    assert training.main(arguments) == 0
    figure = figures_of(capsys.readouterr().out)["two_at_once"]
    assert figure["ratio"] == pytest.approx(figure["ours"] / figure["peer"])
    assert figure["target"] == "ratio >= 0.45"


@pytest.mark.slow
def test_throughput_and_losses_beside_transformers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored at the end
    names = ["tokens_vs_transformers", "matmul_share", "loss_parity_fp32", "loss_parity_bf16"]
    options = ["--markdown", "--peer-forms", "eager", "--workdir", str(tmp_path), "--only", *names]
    assert training.main([*TINY, *options], run=in_this_process) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = figures_of("\n".join(lines[: len(names)]))
    assert list(figures) == names
    assert lines[len(names)].startswith("| figure |")
    for name in names[:2]:
        assert figures[name]["ratio"] == figures[name]["ours"] / figures[name]["peer"] > 0
        assert figures[name]["form"] == "eager"
    assert figures["tokens_vs_transformers"]["peer_name"] == "transformers, eager"
    fp32, bf16 = figures["loss_parity_fp32"], figures["loss_parity_bf16"]
    assert fp32["ours"] == pytest.approx(abs(fp32["ours_loss"] - fp32["peer_loss"]))
    assert fp32["ours"] < 1e-3
    assert fp32["ours_loss"] != bf16["ours_loss"]
    assert fp32["peer_loss"] == bf16["peer_loss"]
    (pair,) = fp32["losses"]
    assert len(pair["ours"]["train"]) == len(pair["peer"]["train"]) == 10
    assert pair["ours"]["train"][0] == pytest.approx(pair["peer"]["train"][0], abs=1e-5)


def test_memory_is_compared_with_the_form_of_the_peer_that_needs_least(tmp_path):
    asked, megabytes = [], {(OURS, "eager"): 125, (OURS, WHOLE): 200, (OURS, RECOMPUTED): 100,
                            ("litgpt", "eager"): 500, ("litgpt", "compiled"): 250}

    def stand_in(function, *, side, form, batch_size, **options):
        asked.append((side, form, batch_size))
        if (side, form) not in megabytes:
            raise ChildProcessError("no compiler")
        return Run({"seconds": [9.0] * WARM_UP + [2.0, 2.0], "peak_bytes": 1e6 * megabytes[side, form]}, 0.0, 0)

    inputs = Training(
        shape="tiny", small="tiny", quick="tiny", batch_size=4, memory_batch_size=8, steps=1, runs=1, seed=0,
        device="cpu", parity_text=None, parity_tokens=640, parity_seeds=1, fit_options=[], workdir=tmp_path,
        scratch=tmp_path, notify=lambda sentence: None, run=stand_in,
    )
    measured = [plan.measure(inputs, plan.name) for plan in plans() if plan.name.startswith("memory")]
    figures = figures_of("\n".join(figure.json_line() for figure in measured))
    assert {name: (figure["ratio"], figure["holds"]) for name, figure in figures.items()} == {
        "memory": (0.5, True), "memory_whole_batch": (0.8, False), "memory_recomputed": (0.4, True)}
    for figure in figures.values():
        assert figure["peer_name"] == "litgpt, compiled"
        assert figure["peer_forms"] == {"eager": 500, "compiled": 250}
        speeds = figure["tokens_per_second"]
        assert speeds["litgpt, compiled"] == 8 * SHAPES["tiny"]["context_length"] / 2
        assert [each for each in speeds if each.startswith(OURS)] == [f"{OURS}, {figure['form']}"]
    assert {batch_size for *_, batch_size in asked} == {8}
    assert len(asked) == 3 + 3  # the three forms of the peer run once for all forms of tslm


@pytest.mark.parametrize("form", ["eager", RECOMPUTED, WHOLE])
def test_each_form_of_tslm_takes_its_steps(form, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored at the end
    result = train(OURS, form, "tiny", 2, 1, 0, str(tmp_path), "cpu")
    assert min(result["seconds"]) > 0


def test_a_training_runs_in_a_new_process(tmp_path):
    run = run_alone(train, side=OURS, form="eager", shape="tiny", batch_size=2, steps=1, seed=0, compiled=tmp_path,
                    device="cpu")
    assert len(run.result["seconds"]) == 1 + WARM_UP
    assert 50e6 < run.result["peak_bytes"] < 2e9


def test_figures_of_missing_libraries_are_skipped_with_one_notice(tmp_path, capsys):
    arguments = ["--only", "tokens", "memory", "--workdir", str(tmp_path)]
    assert training.main(arguments, installed=lambda package: False) == 0
    output, errors = capsys.readouterr()
    assert output == ""
    line = errors.splitlines()[0]
    for word in ("litgpt", "transformers", *(plan.name for plan in plans()[:2]), "memory", "memory_recomputed"):
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "speed"], ["no figure is called speed", "tokens_vs_litgpt"]),
        (["--runs", "0"], ["--runs", "at least 1"]),
        (["--parity-text", "missing.txt"], ["missing.txt", "--parity-text"]),
        pytest.param(["--device", "cuda"], ["--device is cuda", "no CUDA GPU"],
                     marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ],
)
def test_a_wrong_option_is_one_sentence(arguments, words, tmp_path, capsys):
    assert training.main([*arguments, "--workdir", str(tmp_path / "work")]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert all(word in errors for word in words)


def test_a_figure_that_fails_is_named(tmp_path, capsys):
    def failing(function, **arguments):
        raise ChildProcessError("the reason")

    assert training.main([*TINY, "--only", "matmul_share", "--workdir", str(tmp_path)], run=failing) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert "matmul_share was not measured: eager is skipped: the reason" in errors


def test_after_the_first_round_only_the_fastest_forms_run():
    calls = []

    def form(name, values):
        return lambda: calls.append(name) or values.pop()

    def broken():
        raise ChildProcessError("no compiler")

    notices = []
    ours = {"slow": form("slow", [1]), "fast": form("fast", [5, 9, 4])}
    sides = [ours, {"only": form("only", [3, 1, 2]), "x": broken}]
    assert fastest_in_turn(sides, 3, notices.append) == [
        ("fast", 5, {"slow": 1, "fast": 4}), ("only", 2, {"only": 2}),
    ]
    assert calls == ["slow", "fast", "only", "fast", "only", "fast", "only"]
    assert notices == ["x is skipped: no compiler"]
    with pytest.raises(ChildProcessError, match="no compiler"):
        fastest_in_turn([{"x": broken}], 1, notices.append)


def test_the_matmuls_of_a_step_take_time():
    assert matmul_seconds("tiny", batch_size=2, passes=1, device="cpu") > 0


def test_timed_batches_note_the_time_of_each_request():
    batches = TimedBatches(iter("ab"))
    assert list(batches) == ["a", "b"]
    assert batches.times == sorted(batches.times)
    assert len(batches.times) == 2


def test_the_shapes_have_the_documented_sizes():
    from tslm.model import TransformerConfig, TransformerLM

    sizes = {name: TransformerLM(TransformerConfig(**shape)).num_parameters() for name, shape in SHAPES.items()}
    assert round(sizes["course"] / 1e6, 1) == 22.7
    assert round(sizes["small"] / 1e6, 1) == 3.3
    assert round(sizes["text"] / 1e6, 1) == 5.3
    config = yaml.safe_load((ROOT / "configs" / "text.yaml").read_text())
    assert SHAPES["text"] == config["model"] | {name: config["data"][name] for name in ("vocab_size", "context_length")}
