import pytest

from tslm.studies.unicode import SAMPLES, decode_byte_by_byte, encoded_size, print_study, search_pairs


@pytest.mark.parametrize("text", [*SAMPLES, "", "é\0", "\U0010ffff\uffff"])
def test_sizes_are_those_of_the_code_points(text):
    points = [ord(character) for character in text]
    utf8 = sum(1 + (point > 0x7F) + (point > 0x7FF) + (point > 0xFFFF) for point in points)
    surrogates = sum(point > 0xFFFF for point in points)
    assert encoded_size(text, "utf-8").num_bytes == utf8
    assert encoded_size(text, "utf-16-le").num_bytes == 2 * (len(points) + surrogates)
    assert encoded_size(text, "utf-32-le").num_bytes == 4 * len(points)


def test_zero_bytes_are_counted():
    assert [encoded_size("ab\0", encoding).num_zeros for encoding in ("utf-8", "utf-16-le", "utf-32-le")] == [1, 4, 10]
    assert encoded_size("字\U00010400", "utf-16-le").num_zeros == 1  # 57 5b, 01 d8 00 dc


def test_the_samples_show_what_they_are_for():
    english, accents, chinese, family = SAMPLES
    assert english.isascii()
    assert any(0x80 <= ord(character) <= 0xFF for character in accents)
    assert all(0x4E00 <= ord(character) <= 0x9FFF for character in chinese)
    assert "\u200d" in family
    assert max(family) > "\uffff"


def test_decoding_byte_by_byte_is_right_for_ascii_alone():
    for text in SAMPLES:
        outcome = decode_byte_by_byte(text)
        assert (outcome.decoded == text) == (outcome.error is None) == text.isascii()
    outcome = decode_byte_by_byte("café")
    assert (outcome.decoded, outcome.error.object, outcome.error.reason) == (None, b"\xc3", "unexpected end of data")


def test_the_pairs_that_decode_are_those_of_the_definition():
    found = search_pairs()
    assert found.two_characters == 0x80**2  # two of ASCII
    assert found.one_character == 0x800 - 0x80  # U+0080 to U+07FF
    assert found.two_characters + found.one_character + sum(found.reasons.values()) == 1 << 16
    assert found.examples.keys() == found.reasons.keys()
    for reason, (pair, sentence) in found.examples.items():
        with pytest.raises(UnicodeDecodeError, match=reason) as caught:
            pair.decode()
        assert str(caught.value) == sentence


def test_the_page_answers_every_question(capsys):
    print_study("naïve \N{CAT}")
    page = capsys.readouterr().out
    assert r"repr:            '\x00'" in page
    assert "print:           \0\n" in page
    assert r"repr of a text:  'before\x00behind'" in page
    assert "print of a text: before\0behind\n" in page
    assert "\n         7     11      16      28  'naïve \N{CAT}'\n" in page
    assert "\nwrong  c3    unexpected end of data  'naïve \N{CAT}'\n" in page
    assert "65,536 pairs of bytes 18,304 are UTF-8: 16,384 are two characters, 1,920 are one" in page
    assert "can't decode byte 0x80 in position 1: invalid start byte" in page
    assert max(map(len, page.splitlines())) <= 100


def test_half_a_character_is_refused():
    with pytest.raises(ValueError, match=r"the text holds the lone surrogate U\+D83D at position 1"):
        print_study("a\ud83d")


def test_an_empty_text_takes_no_bytes(capsys):
    print_study("")
    assert "\n         0      0       0       0  ''\n" in capsys.readouterr().out
