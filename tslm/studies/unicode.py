"""`study unicode`: what text is to a computer, and why a byte-level tokenizer works on UTF-8.

A text of the user's comes in, or none; what Python does with it, with some samples and with every pair of bytes is
printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tslm.studies.layout import print_note, print_table, print_title

ENCODINGS = ("utf-8", "utf-16-le", "utf-32-le")  # little-endian: without the mark that tells the order of bytes

# English, accents, Chinese, and a family: three emoji that two zero-width joiners make into one sign.
SAMPLES = ("Once upon a time", "Il était une forêt", "从前有一只小猫", "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}")


class EncodedSize(NamedTuple):
    """How much a text takes in one encoding."""

    num_bytes: int
    num_zeros: int  # bytes that are 0, which tell nothing


class ByteByByte(NamedTuple):
    """What came of decoding a text's UTF-8 bytes one at a time: the text, or why not."""

    text: str
    decoded: str | None
    error: UnicodeDecodeError | None


class PairSearch(NamedTuple):
    """All 65,536 sequences of two bytes, sorted by whether they are UTF-8.

    Attributes:
        two_characters: how many decode to two characters.
        one_character: how many decode to one.
        reasons: how many decode to nothing, by Python's reason.
        examples: the first sequence of each reason, with Python's whole sentence.
    """

    two_characters: int
    one_character: int
    reasons: Counter[str]
    examples: dict[str, tuple[bytes, str]]


def print_study(text: str | None = None) -> None:
    """Answer the questions about Unicode.

    Args:
        text: a text to look at beside the samples.

    Raises:
        ValueError: the text holds half a character (a lone surrogate), which no encoding expresses.
    """
    texts = [*SAMPLES, *([] if text is None else [text])]
    sizes = [[encoded_size(sample, encoding) for encoding in ENCODINGS] for sample in texts]
    _print_null(chr(0))
    _print_sizes(texts, sizes)
    _print_byte_by_byte([decode_byte_by_byte(sample) for sample in texts])
    _print_pairs(search_pairs())


def encoded_size(text: str, encoding: str) -> EncodedSize:
    """Return how many bytes a text takes, and how many of them are 0.

    Raises:
        ValueError: the text holds a lone surrogate.
    """
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which is "
            "half a character; give whole ones, in the encoding of the terminal"
        ) from None
    return EncodedSize(len(data), data.count(0))


def decode_byte_by_byte(text: str) -> ByteByByte:
    """Encode a text and decode each byte by itself, as one does who takes a byte for a character."""
    try:
        return ByteByByte(text, "".join(bytes([byte]).decode() for byte in text.encode()), None)
    except UnicodeDecodeError as error:
        return ByteByByte(text, None, error)


def search_pairs() -> PairSearch:
    """Try to decode every sequence of two bytes."""
    lengths: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    examples: dict[str, tuple[bytes, str]] = {}
    for number in range(1 << 16):
        pair = number.to_bytes(2, "big")
        try:
            lengths[len(pair.decode())] += 1
        except UnicodeDecodeError as error:
            reasons[error.reason] += 1
            examples.setdefault(error.reason, (pair, str(error)))
    return PairSearch(lengths[2], lengths[1], reasons, examples)


def _print_null(null: str) -> None:
    print_title("Which character is chr(0)?")
    print(f"repr:            {null!r}")
    print(f"print:           {null}")
    print(f"repr of a text:  {f'before{null}behind'!r}")
    print(f"print of a text: before{null}behind")
    print_note(f"Its repr is an escape of {len(repr(null)) - 2} characters. Printed, it is still there, as the byte "
               f"{null.encode().hex()}, but a terminal shows nothing for it.")


def _print_sizes(texts: Sequence[str], sizes: Sequence[Sequence[EncodedSize]]) -> None:
    print_title("How many bytes does a text take?")
    heading = ["characters", *(encoding.removesuffix("-le").upper() for encoding in ENCODINGS), "text"]
    rows = [[str(len(text)), *(str(size.num_bytes) for size in row), repr(text)]
            for text, row in zip(texts, sizes, strict=True)]
    print_table([heading, *rows], ">>>><")
    zeros = [sum(row[column].num_zeros for row in sizes) for column in range(len(ENCODINGS))]
    total = [sum(row[column].num_bytes for row in sizes) for column in range(len(ENCODINGS))]
    print_note(f"Of the bytes above, {zeros[0] / total[0]:.0%} are zero in UTF-8, {zeros[1] / total[1]:.0%} in UTF-16 "
               f"and {zeros[2] / total[2]:.0%} in UTF-32.")
    print_note("Why BPE starts from the bytes of UTF-8: 256 symbols express every text, so that no character is "
               "unknown; text in Latin letters, most of the web, is shortest there; no byte is padding, on which "
               "merges would be spent; and there is no order of bytes to agree on.")


def _print_byte_by_byte(outcomes: Sequence[ByteByByte]) -> None:
    print_title("Why not decode each byte by itself?")
    print('"".join(bytes([byte]).decode("utf-8") for byte in text.encode("utf-8"))')
    rows = [["wrong", outcome.error.object.hex(), outcome.error.reason, repr(outcome.text)] if outcome.error else
            ["right", "", "", repr(outcome.text)] for outcome in outcomes]
    print_table([["", "byte", "reason", "text"], *rows], "<<<<")
    text, error = next((outcome.text, outcome.error) for outcome in outcomes if outcome.error)
    character = next(character for character in text if not character.isascii())
    print_note(f"It is right for ASCII only. The first that goes wrong is {text!r}: {error}. Its {character!r} is "
               f"the {len(character.encode())} bytes {character.encode().hex(' ')}, and none of them is a character.")


def _print_pairs(search: PairSearch) -> None:
    print_title("Which two bytes decode to nothing?")
    valid = search.two_characters + search.one_character
    invalid = sum(search.reasons.values())
    print_note(f"Of all {valid + invalid:,} pairs of bytes {valid:,} are UTF-8: {search.two_characters:,} are two "
               f"characters, {search.one_character:,} are one. The other {invalid:,} decode to nothing, for example:")
    rows = [[f"{count:,}", search.examples[reason][0].hex(" "), search.examples[reason][1]]
            for reason, count in search.reasons.most_common()]
    print_table([["pairs", "first", "what Python says of it"], *rows], "><<")
