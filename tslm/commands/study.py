"""`study`: the name of one of the course's questions in, its answer out, found by trying.

Nothing is imported before the name is known to be right, as in `tslm.__main__`.
"""

from __future__ import annotations

import difflib


def main(argv: list[str]) -> None:
    """Run one study, or list them.

    Args:
        argv: the words after `python -m tslm study`.

    Raises:
        ValueError: there is no study of this name, or no name.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(_overview())
    elif not argv or argv[0] not in STUDIES:
        raise ValueError(_unknown(argv))
    else:
        STUDIES[argv[0]][0](argv[1:])


def _overview() -> str:
    return "\n".join([
        "The course's questions, answered by trying.",
        "",
        "usage: python -m tslm study NAME [OPTIONS]     (python -m tslm study NAME --help lists the options)",
        "",
        *(f"  {name:<16} {description}" for name, (_, description) in STUDIES.items()),
    ])


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
                        help="the text: one file or several, UTF-8 or .jsonl; stories of the embedded corpus if none")
    parser.add_argument("--num_stories", type=int, default=20_000, help="how many of those stories")
    parser.add_argument("--tokenizer", type=str | None, default=None,
                        help="a folder that `train-tokenizer` has written; if left out, one is trained on the text")
    parser.add_argument("--vocab_size", type=int | None, default=None,
                        help="of the one that is trained; 10,000 if left out, or as many as --tokenizer has")
    parser.add_argument("--special_tokens", type=list[str] | None, default=None,
                        help="of the one that is trained; <|endoftext|> if left out, or those of --tokenizer")
    parser.add_argument("--num_workers", type=int | None, default=None, help="processes; all cores if left out")
    parser.add_argument("--word", type=str | None, default=None,
                        help="a word to see encoded merge by merge; a long and frequent one of the text if left out")
    parser.add_argument("--seed", type=int, default=0, help="which documents are sampled, which stories written")
    print_study(**parser.parse_args(argv).as_dict())


def _unicode(argv: list[str]) -> None:
    from tslm.commands.arguments import Parser
    from tslm.studies.unicode import print_study

    parser = Parser(prog="python -m tslm study unicode", description="Look at text as characters and as bytes.")
    parser.add_argument("--text", type=str | None, default=None, help="a text to look at beside the samples")
    print_study(**parser.parse_args(argv).as_dict())


STUDIES = {
    "tokenizer": (_tokenizer, "training, the longest tokens, compression, speed, and one word merge by merge"),
    "unicode": (_unicode, "chr(0), three encodings, and bytes that are no text"),
}
