"""`study NAME`: answers one of the course's questions by an experiment.

Nothing heavy is imported before the name is known, as in `tslm.__main__`.
"""

from __future__ import annotations

import difflib

from tslm.errors import UserError, as_called


def main(argv: list[str]) -> None:
    """Run one study, or list them.

    Args:
        argv: the words after `python -m tslm study`.

    Raises:
        UserError: the name is missing or unknown.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(_overview())
    elif not argv or argv[0] not in STUDIES:
        raise UserError(_unknown(argv))
    else:
        STUDIES[argv[0]][0](argv[1:])


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


def _tokenizer(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.studies.tokenizer_page import print_study

    parser = Parser(prog="python -m tslm study tokenizer", description="Measure a tokenizer and its training.")
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
    print_study(**parser.parse_args(argv).as_dict())


def _unicode(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.studies.unicode import print_study

    parser = Parser(prog="python -m tslm study unicode", description="Show text as characters and as bytes.")
    parser.add_argument("--text", type=str | None, default=None, help="a text that is shown after the samples")
    print_study(**parser.parse_args(argv).as_dict())


def _fast(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.studies.fast_forms import print_study

    parser = Parser(prog="python -m tslm study fast", description="List what runs here for each replaceable function.")
    parser.add_function_arguments(print_study)
    print_study(**parser.parse_args(argv).as_dict())


def _accounting(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.studies.accounting_page import print_study

    parser = Parser(prog="python -m tslm study accounting", description="Count parameters, memory and operations.")
    parser.add_function_arguments(print_study)
    print_study(**parser.parse_args(argv).as_dict())


def _sgd(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.studies.sgd import print_study

    parser = Parser(prog="python -m tslm study sgd", description="Minimise mean(w²) at several learning rates.")
    parser.add_function_arguments(print_study)
    print_study(**parser.parse_args(argv).as_dict())


FIT = " Further options with a dot, such as --data.corpus, and --config are those of `fit`."


def _lr_range(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.commands.options import split_words

    own, fit = split_words(argv)
    parser = Parser(prog="python -m tslm study lr-range", description="Train once for each learning rate." + FIT)
    parser.add_argument("--lr", type=list[float] | None, default=None,
                        help="learning rates; from 0.0001 to 10, where training diverges, if left out")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, default=1, help="runs for each learning rate")
    parser.add_argument("--plot", type=str | None, default="lr-range.png", help="PNG file of the plot; null for none")
    options = parser.parse_args(own)

    from tslm.studies.sweep import RATES, print_lr_range

    print_lr_range(fit, RATES if options.lr is None else options.lr, options.steps, options.seeds, options.plot)


def _batch_size(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.commands.options import split_words

    own, fit = split_words(argv)
    parser = Parser(prog="python -m tslm study batch-size", description="Train with batches of 1, 2, 4 … windows on "
                    "the same tokens." + FIT)
    parser.add_argument("--steps", type=int, default=200, help="steps at the configuration's batch size; they decide "
                        "the tokens of every run")
    parser.add_argument("--max_batch_size", type=int | None, default=None, help="what memory allows if left out")
    parser.add_argument("--plot", type=str | None, default=None, help="PNG file of a plot")
    options = parser.parse_args(own)

    from tslm.studies.sweep import print_batch_size

    print_batch_size(fit, options.steps, options.max_batch_size, options.plot)


def _ablation(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.commands.options import split_words

    own, fit = split_words(argv)
    parser = Parser(prog="python -m tslm study ablation", description="Train without a part of the model, or with "
                    "another one." + FIT)
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of each run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--only", type=list[str] | None, default=None, help="variants to train; all if left out")
    options = parser.parse_args(own)

    from tslm.studies.sweep import print_ablation

    print_ablation(fit, options.steps, options.seeds, options.only)


STUDIES = {
    "accounting": (_accounting, "parameters, memory, FLOPs and days of GPT-2's sizes or of any configuration"),
    "sgd": (_sgd, "ten steps of gradient descent at the learning rates 1, 10, 100 and 1000, with a verdict for each"),
    "lr-range": (_lr_range, "a sweep of learning rates, with the one that diverges, as a table and a plot"),
    "batch-size": (_batch_size, "batches from 1 to what memory allows, on the same tokens"),
    "ablation": (_ablation, "what norm, RoPE, SwiGLU, AdamW and untied embeddings contribute, with intervals"),
    "tokenizer": (_tokenizer, "training, the longest tokens, compression, speed, and one word merge by merge"),
    "unicode": (_unicode, "chr(0), three encodings, and bytes that are not text"),
    "fast": (_fast, "what runs here for each replaceable function, how it was checked, and how much faster it is"),
}
