"""Each example runs as a script in a folder with a text and a run, and prints what it promises."""

import re
import runpy
import shutil
from pathlib import Path

import pytest

import tslm
from tests.test_cli import in_runs, runs  # noqa: F401 (fixtures)

EXAMPLES = {
    "train_tokenizer": r"\['Once', ' upon', ' a', .*, '\.'\]\n[\d,]+ tokens, \d\.\d\d bytes each\n",
    "complete": r"step \d, trained with a learning rate of 0\.\d+\nOnce upon a time\|.* tokens, (stop|length).*\n"
                r"One day\|(.|\n)* tokens, (stop|length|stop_token)\)\n",
    "score": r"\d+\.\d\d bits per byte, perplexity [\d.]+\n'.+' has \d+\.\d bits\n"
             r"(  '.*' has a probability of .*%\n){3}",
    "train": r"step 20: loss ([\d.]+)\nstep 40: loss ([\d.]+)\nstep 60: loss ([\d.]+)\nOnce upon a time(.|\n)*",
    "change_one_thing": r"SwiGLU ([\d.]+)\nsquared ReLU, as many weights ([\d.]+)\n",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_prints_what_it_promises(name, in_runs, story_file, capsys):  # noqa: F811
    shutil.copy(story_file, "stories.txt")
    runpy.run_path(str(Path(__file__).with_name(f"{name}.py")), run_name="__main__")
    out = capsys.readouterr().out
    found = re.fullmatch(EXAMPLES[name], out)
    assert found, out
    if name == "train_tokenizer":
        assert tslm.Tokenizer.from_dir("tokenizer").vocab_size == 1000
    if name == "train":
        first, _, last = map(float, found.groups()[:3])
        assert last < first - 0.3
        model = tslm.TransformerLM(tslm.TransformerConfig(400, 64, 64, 2, 4, 192))
        optimizer = tslm.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
        assert tslm.load_checkpoint("model.pt", model, optimizer) == 60
    if name == "change_one_thing":
        one, other = map(float, found.groups())
        assert one != other
        assert max(one, other) < 3.5


def test_every_example_is_tested_and_short():
    examples = {path.stem: path for path in Path(__file__).parent.glob("*.py")}
    assert set(examples) - {"__init__", "test_examples"} == set(EXAMPLES)
    assert len(EXAMPLES) == 5
    for name in EXAMPLES:
        assert len(examples[name].read_text(encoding="utf-8").splitlines()) <= 50, name
