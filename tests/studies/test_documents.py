import json
import re

from tslm.studies.documents import iter_documents, read_document, sample_documents
from tslm.tokenizer import Span

END = "<|endoftext|>"


def test_documents_are_what_stands_between_the_ends(tmp_path):
    texts = [f"one é{END}\n two\n{END}{END} \n {END}three", f"{END}four{END}", END, "five"]
    paths = []
    for number, text in enumerate(texts):
        paths.append(tmp_path / f"{number}.txt")
        paths[-1].write_text(text, encoding="utf-8")
    found = [read_document(span) for span in iter_documents(paths)]
    assert found == ["one é", "\n two\n", "three", "four", "five"]
    assert found == [part for text in texts for part in re.split(re.escape(END), text) if part.strip()]


def test_samples_are_documents_in_their_order_and_follow_the_seed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(END.join(f"document {number:03}" for number in range(200)))
    samples = [[read_document(span) for span in sample_documents([path], 10, seed)] for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]
    assert all(sample == sorted(set(sample)) and len(sample) == 10 for sample in samples)
    assert {text for seed in range(200) for span in sample_documents([path], 10, seed) for text in [read_document(span)]
            } == {f"document {number:03}" for number in range(200)}
    assert len(sample_documents([path], 500, 0)) == 200


def test_of_a_very_long_document_whole_characters_are_read(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" + "é" * (1 << 19), encoding="utf-8")
    assert read_document(Span(path, 0, path.stat().st_size)) == "x" + "é" * ((1 << 19) - 1)


def test_each_line_of_jsonl_is_a_document(tmp_path):
    texts = ["one\ntwo", f"é{END}", "", "x" * (1 << 20) + "y"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
    assert [read_document(span) for span in iter_documents([path])] == [*texts[:3], "x" * (1 << 20)]
