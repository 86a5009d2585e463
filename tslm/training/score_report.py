"""What `score` reports: the log-probability of each token, line or file of the texts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, Literal

from tslm.tokenizer.blocks import check_utf8
from tslm.tokenizer.corpus import Corpus
from tslm.tokenizer.jsonl import read_documents
from tslm.tokenizer.sources import Span, find_documents, is_jsonl
from tslm.training.runs import LoadedModel
from tslm.training.scoring import Scores, score_texts
from tslm.training.surprise_page import ALTERNATIVES, SurprisePage

Row = dict[str, Any]


def score_rows(corpus: Corpus, per: Literal["token", "line", "file"], loaded: LoadedModel,
               page: SurprisePage | None = None) -> Iterator[Row]:
    """Score each document of a corpus from its beginning, and yield an object for each token, line or file.

    A record of a JSONL file counts as a line. In a text file, a token belongs to the line in which it begins. The
    documents are also added to the page, if one is given.

    Raises:
        UserError: a file is not UTF-8 or changes while it is read, a line is no record, the vocabulary lacks a byte, or
            the page is too large.
    """
    if page is not None:
        page.check(sum(span.stop - span.start for span in corpus.spans))
    for span in corpus.spans:
        texts = list(documents_of(span, loaded))
        corpus.check_unchanged(span)
        scored = score_texts(loaded.model, loaded.tokenizer, texts, prefix=loaded.prefix,
                             allow_special=corpus.allows_special(span), progress=True,
                             num_alternatives=ALTERNATIVES if page is not None else 0)
        if page is not None:
            page.add(span.label, texts, scored)
        if per == "file":
            yield {"file": span.label} | _figures(Scores.joined(scored))
            continue
        for number, (text, scores) in enumerate(zip(texts, scored, strict=True), 1):
            place = {"file": span.label, "document": number}
            if per == "token":
                yield from (place | row for row in _tokens(scores, loaded))
            elif is_jsonl(span.path):
                yield place | _figures(scores)
            else:
                yield from (place | row for row in _lines(text, scores, loaded))


def documents_of(span: Span, loaded: LoadedModel) -> Iterator[str]:
    """Yield the documents of a span, which the separator of a model's tokenizer divides.

    Raises:
        UserError: the file is not UTF-8, or a line is no record.
    """
    if is_jsonl(span.path):
        yield from (document.decode() for document in read_documents(span))
        return
    separator = loaded.tokenizer.separator
    for document in find_documents(span, b"" if separator is None else loaded.tokenizer.vocab[separator]):
        check_utf8(document.text, span.label, document.start)
        if document.text.strip():
            yield document.text.decode()


def _tokens(scores: Scores, loaded: LoadedModel) -> Iterator[Row]:
    for id_, value in zip(scores.ids, scores.log_probs, strict=True):
        token = loaded.tokenizer.vocab[id_].decode(errors="replace")
        yield {"token": token, "id": id_, "log_prob": round(value, 6)}


def _lines(text: str, scores: Scores, loaded: LoadedModel) -> Iterator[Row]:
    position = len(text.encode()) - scores.num_bytes  # of the first token that could be predicted
    line = text.encode()[:position].count(b"\n")
    numbers = []
    for id_ in scores.ids:
        numbers.append(line)
        line += loaded.tokenizer.vocab[id_].count(b"\n")
    for number, indices in groupby(range(len(numbers)), key=numbers.__getitem__):
        chosen = list(indices)
        ids = [scores.ids[n] for n in chosen]
        size = sum(len(loaded.tokenizer.vocab[id_]) for id_ in ids)
        yield {"line": 1 + number} | _figures(Scores(ids, [scores.log_probs[n] for n in chosen], size))


def _figures(scores: Scores) -> Row:
    return {
        "log_prob": round(scores.total, 6), "tokens": len(scores.ids), "bytes": scores.num_bytes,
        "perplexity": round(scores.perplexity, 6) if scores.ids else None,
        "bits_per_byte": round(scores.bits_per_byte, 6) if scores.num_bytes else None,
    }
