"""Print the measurements of tokenizer.py as answers to the course's questions: the command `study tokenizer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tslm.studies.layout import print_note, print_table, print_title
from tslm.studies.tokenizer import Speed, TokenizerStudy, is_word, study_tokenizer
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.report import bytes_per_token, longest_tokens

PILE_BYTES = 825e9  # Gao et al. 2020


def print_study(**options: Any) -> None:  # noqa: ANN401  (passed through)
    """Measure a tokenizer and print the page; `study_tokenizer` documents options and errors."""
    print_page(study_tokenizer(**options), options["input"], options["tokenizer"])


def print_page(study: TokenizerStudy, input: Sequence[str] | None = None, tokenizer: str | None = None) -> None:
    """Print all answers.

    Args:
        study: the measurements.
        input: the text files that were studied; None for the embedded corpus.
        tokenizer: the folder of the tokenizer that was studied; None if it was trained on the text.
    """
    print(f"text       {', '.join(input or ['stories of the embedded corpus'])}: {study.num_bytes:,} bytes")
    print(f"tokenizer  {tokenizer or 'trained on this text'}: {len(study.tokenizer.vocab):,} tokens")
    _print_training(study)
    _print_longest(study.tokenizer)
    _print_compression(study)
    _print_speeds(study.speeds)
    _print_sizes(study)
    _print_replay(study)


def _print_training(study: TokenizerStudy) -> None:
    training = study.training
    merges = len(training.tokenizer.merges)
    print_title("How much time and memory does training take?")
    print_table([
        ["part", "seconds", "share", ""],
        ["counting", f"{training.counting_seconds:.2f}", f"{training.counting_seconds / training.seconds:.0%}",
         f"{study.num_bytes:,} bytes of text, {len(training.counts):,} distinct pre-tokens"],
        ["merging", f"{training.merging_seconds:.2f}", f"{training.merging_seconds / training.seconds:.0%}",
         f"{merges:,} merges"],
        ["both", f"{training.seconds:.2f}", "100%", ""],
    ], "<>><")
    print_note(f"Peak memory: {training.memory}.")
    if study.profile:
        total = sum(each.seconds for each in study.profile)
        print_note("The functions with most time of their own, in one process under Python's profiler:")
        print_table([["function", "calls", "seconds", "share of these"],
                     *([each.name, f"{each.calls:,}", f"{each.seconds:.3f}", f"{each.seconds / max(total, 1e-9):.0%}"]
                       for each in study.profile)], "<>>>")
    if len(training.tokenizer.vocab) < study.vocab_size:
        print_note(f"Training ended at {len(training.tokenizer.vocab):,} of {study.vocab_size:,} tokens, because no "
                   "pair was left: every pre-token of the text is one token.")
    if study.common_merges is None:
        return
    if study.common_merges == len(study.tokenizer.merges) == merges:
        print_note(f"All {merges:,} merges of the tokenizer and of this training agree.")
    else:
        print_note(f"The tokenizer has {len(study.tokenizer.merges):,} merges, and this training made {merges:,}. The "
                   f"first {study.common_merges:,} agree. The tokenizer was trained on another text or by another "
                   "rule.")


def _print_longest(tokenizer: Tokenizer) -> None:
    print_title("Which are the longest tokens, and do they make sense?")
    longest = longest_tokens(tokenizer, 10)
    print_table([["bytes", "", "token (· is a space)"],
                 *([str(len(token)), "letters" if is_word(token) else "", show(token)] for token in longest)], "><<")
    merged = {left + right for left, right in tokenizer.merges}
    print_note(f"{sum(map(is_word, longest))} of these {len(longest)} are words or parts of words: letters with at "
               f"most one space before them. Of all {len(merged):,} merged tokens, {sum(map(is_word, merged)):,} are.")


def _print_compression(study: TokenizerStudy) -> None:
    print_title("How many bytes of text does a token represent?")
    rows = [_compression(document.num_bytes, document.num_tokens, repr(document.text))
            for document in study.documents]
    num_bytes, num_tokens = (sum(column) for column in list(zip(*study.documents, strict=True))[1:])
    print_table([
        ["bytes", "tokens", "bytes per token", "document"], *rows,
        _compression(num_bytes, num_tokens, "total of these documents"),
        _compression(study.num_bytes, study.num_tokens, "the whole text, special tokens included"),
    ], ">>><")
    ratio = bytes_per_token(study.tokenizer, study.training.counts)
    print_note(f"Without special tokens, the whole text has {ratio:.2f} bytes per token.")


def _compression(num_bytes: int, num_tokens: int, name: str) -> list[str]:
    return [f"{num_bytes:,}", f"{num_tokens:,}", f"{num_bytes / num_tokens:.2f}", name]


def _print_speeds(speeds: Sequence[Speed]) -> None:
    print_title(f"How fast is it, and how long would the Pile ({PILE_BYTES / 1e9:.0f} GB) take?")
    rows = []
    for speed in speeds:
        hours = PILE_BYTES / speed.bytes_per_second / 3600
        rows.append([speed.name, f"{speed.num_bytes:,}", f"{speed.seconds:.3g}", f"{speed.bytes_per_second / 1e6:.1f}",
                     f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"])
    print_table([["", "bytes", "seconds", "MB/s", "the Pile"], *rows], "<>>>>")
    print_note("The time of encode_files does not contain the start of its workers.")


def _print_sizes(study: TokenizerStudy) -> None:
    print_title("Why are ids stored in 16 bits?")
    rows = [[f"ids of {bits} bits", f"{study.num_tokens * bits // 8:,}", f"{bits // 8}",
             f"{study.num_tokens * bits / 8 / study.num_bytes:.2f}"] for bits in (16, 32, 64)]
    print_table([["", "bytes", "bytes per token", "of the text"],
                 ["text", f"{study.num_bytes:,}", f"{study.num_bytes / study.num_tokens:.2f}", "1.00"], *rows], "<>>>")
    size = study.tokenizer.vocab_size
    if size <= 1 << 16:
        print_note(f"The largest of {size:,} ids is below 2^16 = {1 << 16:,}, so 16 bits are enough and 8 are not. "
                   "More bits would store only zeros.")
    else:
        print_note(f"{size:,} ids do not fit into 2^16 = {1 << 16:,}; this vocabulary needs 32 bits.")


def _print_replay(study: TokenizerStudy) -> None:
    print_title(f"How is {study.word!r} encoded?")
    rows = []
    for step in study.steps:
        rank, pair = "", "(none)"
        if step.rank is not None:
            rank, pair = f"{step.rank:,}", " ".join(map(show, study.tokenizer.merges[step.rank]))
        rows.append([rank, pair, " ".join(map(show, step.tokens))])
    print_table([["rank", "next merge", "tokens so far"], *rows], "><<")
    print_note("The rank is the position in the list of merges. Of the possible merges, the one with the lowest rank, "
               "which training made first, is applied next.")


def show(token: bytes) -> str:
    """Return a token in printable characters: a space as ·, other bytes and characters as escapes."""
    text = token.decode(errors="backslashreplace").replace(" ", "·")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
