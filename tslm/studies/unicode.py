"""Show what text is to a computer, and why a byte-level tokenizer works on UTF-8: the command `study unicode`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tslm.errors import UserError
from tslm.studies.layout import print_note, print_table, print_title

ENCODINGS = ("utf-8", "utf-16-le", "utf-32-le")  # little-endian, which has no byte order mark

# English, accents, Chinese, and a family: three emoji joined by two zero-width joiners into one visible character.
SAMPLES = ("Once upon a time", "Il était une forêt", "从前有一只小猫", "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}")


class PairSearch(NamedTuple):
    """All 65,536 sequences of two bytes, counted by the result of decoding them as UTF-8.

    Attributes:
        two_characters: number of sequences that decode to two characters.
        one_character: number of sequences that decode to one.
        reasons: number of sequences that are invalid, for each of Python's reasons.
        examples: the error of the first sequence for each reason.
    """

    two_characters: int
    one_character: int
    reasons: Counter[str]
    examples: dict[str, UnicodeDecodeError]


def print_study(text: str | None = None) -> None:
    """Answer the questions about Unicode.

    Args:
        text: a text to show next to the samples.

    Raises:
        UserError: the text contains a lone surrogate, which no encoding can express.
    """
    texts = [*SAMPLES, *([] if text is None else [text])]
    encoded = [[encode(sample, encoding) for encoding in ENCODINGS] for sample in texts]
    _print_null()
    _print_sizes(texts, encoded)
    _print_bytewise(texts)
    _print_pairs(search_pairs())


def encode(text: str, encoding: str) -> bytes:
    """Encode a text.

    Raises:
        UserError: the text contains a lone surrogate.
    """
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(f"the text contains the lone surrogate U+{ord(text[error.start]):04X} at position "
                        f"{error.start}, which is half a character: give whole characters, in the encoding of the "
                        "terminal") from None


def decode_bytewise(text: str) -> str:
    """Encode a text as UTF-8 and decode each byte by itself, which works only if each byte is a character.

    Raises:
        UnicodeDecodeError: a byte is not a character.
    """
    return "".join(bytes([byte]).decode() for byte in text.encode())


def search_pairs() -> PairSearch:
    """Decode every sequence of two bytes."""
    lengths: Counter[int] = Counter()
    reasons: Counter[str] = Counter()
    examples: dict[str, UnicodeDecodeError] = {}
    for number in range(1 << 16):
        try:
            lengths[len(number.to_bytes(2, "big").decode())] += 1
        except UnicodeDecodeError as error:
            reasons[error.reason] += 1
            examples.setdefault(error.reason, error)
    return PairSearch(lengths[2], lengths[1], reasons, examples)


def _print_null() -> None:
    null = chr(0)
    print_title("Which character is chr(0)?")
    print(f"repr:            {null!r}")
    print(f"print:           {null}")
    print(f"repr of a text:  {f'before{null}after'!r}")
    print(f"print of a text: before{null}after")
    print_note(f"Its repr is an escape of {len(repr(null)) - 2} characters. When it is printed, the output contains "
               f"the byte {null.encode().hex()}, but a terminal shows nothing for it.")


def _print_sizes(texts: Sequence[str], encoded: Sequence[Sequence[bytes]]) -> None:
    print_title("How many bytes does a text take?")
    header = ["characters", *(encoding.removesuffix("-le").upper() for encoding in ENCODINGS), "text"]
    rows = [[str(len(text)), *(str(len(data)) for data in row), repr(text)]
            for text, row in zip(texts, encoded, strict=True)]
    print_table([header, *rows], ">>>><")
    columns = [b"".join(column) for column in zip(*encoded, strict=True)]
    utf8, utf16, utf32 = (column.count(0) / len(column) for column in columns)
    print_note(f"Of the bytes above, {utf8:.0%} are zero in UTF-8, {utf16:.0%} in UTF-16 and {utf32:.0%} in UTF-32.")
    print_note("Why BPE starts from the bytes of UTF-8: 256 symbols express every text, so no character is unknown. "
               "Text in Latin letters, which is most of the web, is shortest in UTF-8. No byte is padding that merges "
               "would be spent on. There is no byte order to agree on.")


def _print_bytewise(texts: Sequence[str]) -> None:
    print_title("Why not decode each byte by itself?")
    print('"".join(bytes([byte]).decode("utf-8") for byte in text.encode("utf-8"))')
    rows, failures = [], []
    for text in texts:
        try:
            decode_bytewise(text)
            rows.append(["right", "", "", repr(text)])
        except UnicodeDecodeError as error:
            rows.append(["wrong", error.object.hex(), error.reason, repr(text)])
            failures.append((text, str(error)))
    print_table([["", "byte", "reason", "text"], *rows], "<<<<")
    text, message = failures[0]
    character = next(character for character in text if not character.isascii())
    print_note(f"It is right only for ASCII. The first failure is {text!r}: {message}. Its {character!r} is encoded as "
               f"the {len(character.encode())} bytes {character.encode().hex(' ')}, and none of them is a character.")


def _print_pairs(search: PairSearch) -> None:
    print_title("Which two bytes are not valid UTF-8?")
    valid = search.two_characters + search.one_character
    invalid = sum(search.reasons.values())
    print_note(f"Of all {valid + invalid:,} pairs of bytes, {valid:,} are valid: {search.two_characters:,} are two "
               f"characters, {search.one_character:,} are one. The other {invalid:,} are invalid, for example:")
    rows = [[f"{count:,}", search.examples[reason].object.hex(" "), str(search.examples[reason])]
            for reason, count in search.reasons.most_common()]
    print_table([["pairs", "first", "Python's message"], *rows], "><<")
