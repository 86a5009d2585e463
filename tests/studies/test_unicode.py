"""`study unicode`: sizes and decodings against the definition of UTF-8, and the printed page."""

import pytest

from tslm.errors import UserError
from tslm.studies.unicode import SAMPLES, decode_bytewise, encode, print_study, search_pairs


@pytest.mark.parametrize("text", [*SAMPLES, "", "é\0", "\U0010ffff\uffff"])
def test_sizes_follow_from_the_code_points(text):
    points = [ord(character) for character in text]
    utf8 = sum(1 + (point > 0x7F) + (point > 0x7FF) + (point > 0xFFFF) for point in points)
    surrogates = sum(point > 0xFFFF for point in points)
    assert len(encode(text, "utf-8")) == utf8
    assert len(encode(text, "utf-16-le")) == 2 * (len(points) + surrogates)
    assert len(encode(text, "utf-32-le")) == 4 * len(points)


def test_the_samples_cover_ascii_accents_ideographs_and_joiners():
    english, accents, chinese, family = SAMPLES
    assert english.isascii()
    assert any(0x80 <= ord(character) <= 0xFF for character in accents)
    assert all(0x4E00 <= ord(character) <= 0x9FFF for character in chinese)
    assert "\u200d" in family
    assert max(family) > "\uffff"


def test_decoding_byte_by_byte_works_for_ascii_only():
    assert decode_bytewise("cafe") == "cafe"
    with pytest.raises(UnicodeDecodeError, match="unexpected end of data") as caught:
        decode_bytewise("café")
    assert caught.value.object == b"\xc3"


def test_the_valid_pairs_are_those_of_the_definition():
    found = search_pairs()
    assert found.two_characters == 0x80**2  # two ASCII characters
    assert found.one_character == 0x800 - 0x80  # U+0080 to U+07FF
    assert found.two_characters + found.one_character + sum(found.reasons.values()) == 1 << 16
    assert found.examples.keys() == found.reasons.keys()
    for reason, error in found.examples.items():
        assert error.reason == reason
        with pytest.raises(UnicodeDecodeError, match=reason):
            error.object.decode()


def test_the_page_answers_every_question(capsys):
    print_study("naïve \N{CAT}")
    page = capsys.readouterr().out
    assert r"repr:            '\x00'" in page
    assert "print:           \0\n" in page
    assert r"repr of a text:  'before\x00after'" in page
    assert "print of a text: before\0after\n" in page
    assert "\n         7     11      16      28  'naïve \N{CAT}'\n" in page
    assert "0% are zero in UTF-8, 36% in UTF-16 and 67% in UTF-32." in page
    assert "\nwrong  c3    unexpected end of data  'naïve \N{CAT}'\n" in page
    assert "65,536 pairs of bytes, 18,304 are valid: 16,384 are two characters, 1,920 are one" in page
    assert "can't decode byte 0x80 in position 1: invalid start byte" in page
    assert max(map(len, page.splitlines())) <= 100


def test_a_lone_surrogate_is_refused():
    with pytest.raises(UserError, match=r"the text contains the lone surrogate U\+D83D at position 1"):
        print_study("a\ud83d")


def test_an_empty_text_has_no_bytes(capsys):
    print_study("")
    assert "\n         0      0       0       0  ''\n" in capsys.readouterr().out
