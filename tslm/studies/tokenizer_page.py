"""`study tokenizer`: prints, question by question, what tokenizer.py has measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tslm.studies.layout import print_note, print_table, print_title
from tslm.studies.tokenizer import Speed, TokenizerStudy, is_word, study_tokenizer
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.report import bytes_per_token, longest_tokens

PILE_BYTES = 825e9  # Gao et al. 2020


def print_study(**options: Any) -> None:  # noqa: ANN401  (passed on as they are)
    """Answer the questions about the tokenizer; `study_tokenizer` documents options and errors."""
    study = study_tokenizer(**options)
    source = ", ".join(options["input"] or ["stories of the embedded corpus"])
    print(f"text       {source}: {study.num_bytes:,} bytes")
    print(f"tokenizer  {options['tokenizer'] or 'trained on this text'}: {len(study.tokenizer.vocab):,} tokens")
    _print_training(study)
    _print_longest(study.tokenizer)
    _print_compression(study)
    _print_speeds(study.speeds)
    _print_sizes(study)
    _print_replay(study)


def _print_training(study: TokenizerStudy) -> None:
    training = study.training
    merges = len(training.tokenizer.merges)
    print_title("What does training take?")
    print_table([
        ["phase", "seconds", "share", ""],
        ["counting", f"{training.counting_seconds:.2f}", f"{training.counting_seconds / training.seconds:.0%}",
         f"{study.num_bytes:,} bytes of text, {len(training.counts):,} distinct pre-tokens"],
        ["merging", f"{training.merging_seconds:.2f}", f"{training.merging_seconds / training.seconds:.0%}",
         f"{merges:,} merges"],
        ["both", f"{training.seconds:.2f}", "100%", ""],
    ], "<>><")
    print_note(f"Peak memory: {training.memory}.")
    if len(training.tokenizer.vocab) < study.vocab_size:
        print_note(f"It ended at {len(training.tokenizer.vocab):,} of {study.vocab_size:,} tokens, because no pair was "
                   "left: every pre-token of the text had become one token.")
    if study.common_merges is None:
        return
    if study.common_merges == len(study.tokenizer.merges) == merges:
        print_note(f"The tokenizer's merges and those of this training agree, all {merges:,}.")
    else:
        print_note(f"The tokenizer has {len(study.tokenizer.merges):,} merges and this training made {merges:,}; the "
                   f"first {study.common_merges:,} agree. It was trained on another text or by another rule.")


def _print_longest(tokenizer: Tokenizer) -> None:
    print_title("Which are the longest tokens, and do they make sense?")
    longest = longest_tokens(tokenizer, 10)
    print_table([["bytes", "", "token (· is a space)"],
                 *([str(len(token)), "letters" if is_word(token) else "", show(token)] for token in longest)], "><<")
    merged = {left + right for left, right in tokenizer.merges}
    print_note(f"{sum(map(is_word, longest))} of {len(longest)} are letters, with at most one space in front: words or "
               f"parts of words; so are {sum(map(is_word, merged)):,} of all {len(merged):,} merged tokens.")


def _print_compression(study: TokenizerStudy) -> None:
    print_title("How many bytes of text does a token stand for?")
    rows = [_compression(document.num_bytes, document.num_tokens, repr(document.text))
            for document in study.documents]
    num_bytes, num_tokens = (sum(column) for column in list(zip(*study.documents, strict=True))[1:])
    print_table([
        ["bytes", "tokens", "bytes per token", "document"], *rows,
        _compression(num_bytes, num_tokens, "these documents together"),
        _compression(study.num_bytes, study.num_tokens, "the whole text, special tokens among the tokens"),
    ], ">>><")
    ratio = bytes_per_token(study.tokenizer, study.training.counts)
    print_note(f"Special tokens left out, the whole text has {ratio:.2f} bytes per token.")


def _compression(num_bytes: int, num_tokens: int, what: str) -> list[str]:
    return [f"{num_bytes:,}", f"{num_tokens:,}", f"{num_bytes / num_tokens:.2f}", what]


def _print_speeds(speeds: Sequence[Speed]) -> None:
    print_title(f"How fast is it, and how long would the Pile ({PILE_BYTES / 1e9:.0f} GB) take?")
    rows = []
    for speed in speeds:
        hours = PILE_BYTES / speed.bytes_per_second / 3600
        rows.append([speed.name, f"{speed.num_bytes:,}", f"{speed.seconds:.2f}", f"{speed.bytes_per_second / 1e6:.1f}",
                     f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"])
    print_table([["", "bytes", "seconds", "MB/s", "the Pile"], *rows], "<>>>>")


def _print_sizes(study: TokenizerStudy) -> None:
    print_title("Why are ids kept in 16 bits?")
    rows = [[f"ids of {bits} bits", f"{study.num_tokens * bits // 8:,}", f"{bits // 8}",
             f"{study.num_tokens * bits / 8 / study.num_bytes:.2f}"] for bits in (16, 32, 64)]
    print_table([["", "bytes", "bytes per token", "of the text"],
                 ["text", f"{study.num_bytes:,}", f"{study.num_bytes / study.num_tokens:.2f}", "1.00"], *rows], "<>>>")
    size = study.tokenizer.vocab_size
    if size <= 1 << 16:
        print_note(f"The largest of {size:,} ids is below 2^16 = {1 << 16:,}: 16 bits hold each, 8 would not; more "
                   "would be zeros to write and to read.")
    else:
        print_note(f"{size:,} ids do not fit into 2^16 = {1 << 16:,}; this vocabulary needs 32 bits.")


def _print_replay(study: TokenizerStudy) -> None:
    print_title(f"How is {study.word!r} encoded?")
    rows = []
    for step in study.steps:
        rank, pair = "", "(none is left)"
        if step.rank is not None:
            rank, pair = f"{step.rank:,}", " ".join(map(show, study.tokenizer.merges[step.rank]))
        rows.append([rank, pair, " ".join(map(show, step.tokens))])
    print_table([["rank", "next merge", "tokens so far"], *rows], "><<")
    print_note("The rank is the merge's place among all merges: of those that could be applied, the one made earliest "
               "in training goes first.")


def show(token: bytes) -> str:
    """Return a token in visible signs: a space as ·, and what is no character, or not a printable one, as escapes."""
    text = token.decode(errors="backslashreplace").replace(" ", "·")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
