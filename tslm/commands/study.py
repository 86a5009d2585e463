"""`study NAME`: answers one of the course's questions by an experiment.

Nothing heavy is imported before the name is known, as in `tslm.__main__`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from tslm.errors import UserError, as_called

if TYPE_CHECKING:
    from tslm.commands.arguments import Parser


def main(argv: list[str]) -> None:
    """Run one study, or list them."""
    if argv and argv[0] in ("-h", "--help"):
        print(_overview())
    elif not argv or argv[0] not in STUDIES:
        raise UserError(_unknown(argv))
    else:
        _run(argv[0], argv[1:])


class Study(NamedTuple):
    """A study: its `module.function` below tslm.studies, what its help says, and what adds its options.

    Unless given, the options are the arguments of the function. A function of `sweep` also gets the words of `fit`.
    """

    function: str
    about: str
    add_options: Callable[[Parser], None] | None = None


def _run(name: str, words: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.commands.options import split_words

    study = STUDIES[name][0]
    module, _, function = study.function.partition(".")
    own, fit = split_words(words) if module == "sweep" else (words, None)
    further = " Further options with a dot, such as --data.corpus, and --config are those of `fit`." * (fit is not None)
    parser = Parser(prog=f"python -m tslm study {name}", description=study.about + further)
    if study.add_options is None:
        parser.add_function_arguments(getattr(import_module(f"tslm.studies.{module}"), function))
    else:
        study.add_options(parser)
    options = parser.parse_args(own).as_dict()
    # `sweep` imports lightning, so it is imported after the options are checked.
    getattr(import_module(f"tslm.studies.{module}"), function)(*([] if fit is None else [fit]), **options)


def _overview() -> str:
    return as_called("\n".join([
        "The course's questions, each answered by an experiment.",
        "",
        "usage: python -m tslm study NAME [OPTIONS]     (python -m tslm study NAME --help lists the options)",
        "",
        *(f"  {name:<16} {description}" for name, (_, description) in STUDIES.items()),
    ]))


def _unknown(argv: list[str]) -> str:
    names = ", ".join(STUDIES)
    if not argv:
        return f"the name of a study is missing: choose one of {names}"
    if argv[0].startswith("-"):
        return f"expected the name of a study before {argv[0]}, one of {names}"
    nearest = difflib.get_close_matches(argv[0], STUDIES, n=1)
    return f"unknown study {argv[0]!r}: " + (f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {names}")


def _tokenizer_options(parser: Parser) -> None:
    parser.add_argument("--input", type=str, nargs="+", default=None,
                        help="text files, UTF-8 or .jsonl; if left out, stories of the embedded corpus")
    parser.add_argument("--num_stories", type=int, default=20_000, help="how many stories of the embedded corpus")
    parser.add_argument("--tokenizer", type=str | None, default=None,
                        help="a folder written by `train-tokenizer`, a tokenizer.json or a .tiktoken file; if left "
                        "out, a tokenizer is trained on the text")
    parser.add_argument("--vocab_size", type=int | None, default=None,
                        help="vocabulary size of the trained tokenizer; if left out, 10,000 or the size of --tokenizer")
    parser.add_argument("--special_tokens", type=list[str] | None, default=None,
                        help="special tokens of that tokenizer; if left out, <|endoftext|> or those of --tokenizer")
    parser.add_argument("--num_workers", type=int | None, default=None, help="processes; one per core if left out")
    parser.add_argument("--word", type=str | None, default=None,
                        help="the word whose encoding is shown merge by merge; if left out, a long and frequent one")
    parser.add_argument("--seed", type=int, default=0, help="selects the sampled documents and the stories")


def _unicode_options(parser: Parser) -> None:
    parser.add_argument("--text", type=str | None, default=None, help="a text that is shown after the samples")


def _lr_range_options(parser: Parser) -> None:
    parser.add_argument("--lr", type=list[float] | None, default=None,
                        help="learning rates; from 0.0001 to 10, where training diverges, if left out")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs for each learning rate")
    parser.add_argument("--plot", type=str | None, default="lr-range.png", help="PNG file of the plot; null for none")


def _batch_size_options(parser: Parser) -> None:
    parser.add_argument("--steps", type=int, default=200, help="steps at the configuration's batch size; they decide "
                        "the tokens of every run")
    parser.add_argument("--max_batch_size", type=int | None, default=None, help="what memory allows if left out")
    parser.add_argument("--plot", type=str | None, default=None, help="PNG file of a plot")


def _ablation_options(parser: Parser) -> None:
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--only", type=list[str] | None, default=None, help="variants to train; all if left out")


STUDIES = {
    "accounting": (Study("accounting_page.print_study", "Count parameters, memory and operations."),
                   "parameters, memory, FLOPs and days of GPT-2's sizes or of any configuration"),
    "sgd": (Study("sgd.print_study", "Minimise mean(w²) at several learning rates."),
            "ten steps of gradient descent at the learning rates 1, 10, 100 and 1000, with a verdict for each"),
    "lr-range": (Study("sweep.print_lr_range", "Train once for each learning rate.", _lr_range_options),
                 "a sweep of learning rates, with the one that diverges, as a table and a plot"),
    "batch-size": (Study("sweep.print_batch_size", "Train with batches of 1, 2, 4 … windows on the same tokens.",
                         _batch_size_options), "batches from 1 to what memory allows, on the same tokens"),
    "ablation": (Study("sweep.print_ablation", "Train without a part of the model, or with another one.",
                       _ablation_options),
                 "what norm, RoPE, SwiGLU, AdamW and untied embeddings contribute, with intervals"),
    "tokenizer": (Study("tokenizer_page.print_study", "Measure a tokenizer and its training.", _tokenizer_options),
                  "training, the longest tokens, compression, speed, and one word merge by merge"),
    "unicode": (Study("unicode.print_study", "Show text as characters and as bytes.", _unicode_options),
                "chr(0), three encodings, and bytes that are not text"),
    "fast": (Study("fast_forms.print_study", "List what runs here for each replaceable function."),
             "what runs here for each replaceable function, how it was checked, and how much faster it is"),
}
