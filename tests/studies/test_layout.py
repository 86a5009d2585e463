"""Tables, titles and paragraphs on a page of 100 columns."""

from tslm.studies.layout import WIDTH, print_note, print_table, print_title


def test_a_table_has_columns_as_wide_as_their_widest_cell(capsys):
    print_table([["name", "count", ""], ["a", "1,000", "x"], ["longer", "2", "first " * 20]], "<><")
    assert capsys.readouterr().out.splitlines() == [
        "name    count",
        "a       1,000  x",
        "longer      2  " + " ".join(["first"] * 14),
        "               " + " ".join(["first"] * 6),
    ]
    print_table([["a", "12"], ["bc", "3"], ["d", ""]], "<>")
    assert capsys.readouterr().out == "a   12\nbc   3\nd\n"


def test_paragraphs_wrap_at_the_width_of_the_page(capsys):
    print_title("Why?")
    print_note("because " * 30)
    title, line, *note = capsys.readouterr().out.lstrip("\n").splitlines()
    assert (title, line) == ("Why?", "----")
    assert len(note) > 1
    assert max(map(len, note)) <= WIDTH
