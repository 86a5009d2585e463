"""The first page of `fit --help`: the options that matter, without an import of anything heavy."""

from __future__ import annotations

import textwrap
from itertools import pairwise

from tslm.errors import UserError

# Option, its value, that of the quick start ("" where there is none worth showing), what it does.
OPTIONS: dict[str, list[tuple[str, str, str, str]]] = {
    "Text": [
        ("--data.train_files", "'[\"my.txt\"]'", "", "files, folders or globs: text, .jsonl, .parquet, also .gz, .xz, "
         ".zst; without them the embedded stories"),
        ("--data.valid_files", "'[\"v.txt\"]'", "", "text to validate on; else 5% of the documents are held out"),
        ("--data.corpus", "toy|tinystories|files", "", "tinystories is downloaded at its first use"),
        ("--data.vocab_size", "N", "2048", "largest vocabulary of the tokenizer, and of the model"),
    ],
    "Model": [
        ("--model.d_model", "N", "128", "width"),
        ("--model.num_layers", "N", "3", "Transformer blocks"),
        ("--model.num_heads", "N", "4", "attention heads"),
        ("--model.d_ff", "N", "352", "inner width of the feed-forward layer"),
        ("--data.context_length", "N", "256", "tokens in a window"),
    ],
    "Training": [
        ("--trainer.max_tokens", "N", "", "the budget in tokens, such as 2e6 or 2M; or"),
        ("--trainer.max_steps", "N", "", "the budget in optimizer steps; or"),
        ("--trainer.max_minutes", "X", "2.75", "the budget in minutes, from the command to its end"),
        ("--data.batch_size", "N", "6", "windows of one optimizer step"),
        ("--data.micro_batch_size", "N", "", "windows computed at a time; fewer need less memory"),
        ("--optimizer.lr", "X", "0.012", "peak learning rate"),
        ("--optimizer.class_path", "NAME", "Muon", "AdamW, SGD, Muon or a class of your own"),
        ("--trainer.precision", "NAME", "auto", "bf16-mixed if the device computes in bfloat16, else 32-true"),
        ("--seed_everything", "N", "0", "decides weights and windows"),
    ],
    "Run": [
        ("--name", "NAME", "", "the run directory under lightning_logs; else version_N"),
        ("--trainer.val_every_n_steps", "N", "1700", "validate so often; 0 at the end only"),
        ("--trainer.save_every_n_steps", "N", "0", "save so often; each validation and the end save anyway"),
        ("--ckpt_path", "last|FILE", "", "resume a run"),
        ("--init_from", "best|FILE", "", "start a new run from the weights of another"),
        ("--config", "FILE", "", "options from a YAML file; those on the command line win"),
    ],
}


def asks_for_first_page(words: list[str]) -> bool:
    """Whether the words after `fit` ask for help, but not for all of it.

    Raises:
        UserError: they ask for the help of a word that is not `all`.
    """
    for word, following in pairwise([*words, "-"]):
        if word in ("-h", "--help") and following != "all" and not following.startswith("-"):
            raise UserError(f"{word} {following} is no page of help: give --help, or --help all, which lists every "
                            "option")
    return any(word in ("-h", "--help") for word in words) and "all" not in words


def first_page() -> str:
    """Return the page."""
    lines = ["usage: python -m tslm fit [OPTIONS]", "",
             "Train a model, from raw text to stories. Without --config the options not given are those of the quick "
             "start,", "which takes about three minutes on two cores. They are in parentheses."]
    for title, options in OPTIONS.items():
        lines += ["", f"{title}:"]
        for name, value, default, text in options:
            text = f"{text} ({default})" if default else text
            first, *rest = textwrap.wrap(text, 55)
            stated = f"  {name} {value}"
            lines += [f"{stated:<42} {first}"] if len(stated) <= 42 else [stated, f"{'':<42} {first}"]
            lines += [f"{'':<42} {line}" for line in rest]
    lines += ["", "`python -m tslm fit --help all` lists every option, `--print_config` their values."]
    return "\n".join(lines)
