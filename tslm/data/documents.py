"""Where documents begin in an array of token ids, and windows that begin where documents do.

A window cut anywhere begins as a rule in the middle of a document, and the model has to guess at what it is not shown.
Where a model will only ever be asked about documents from their beginnings, to continue them or to score them, its
windows had better begin there too (cf. Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

A document begins at the separator before it (`<|endoftext|>`), which is a model's sign that something new begins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.integer[Any]]
Places = npt.NDArray[np.int64]

_AT_ONCE = 2**24  # ids: they may be a memory map of something larger than the memory


def document_starts(dataset: TokenIds, separator: int) -> Places:
    """Return where documents begin: at the data set's first token and at every separator.

    Example: with the separator 0, the ids 5 6 0 7 0 8 have documents at 0, 2 and 4.

    Returns:
        Places in ascending order, int64, the first of them 0.
    """
    found = [start + np.flatnonzero(np.asarray(dataset[start : start + _AT_ONCE]) == separator)
             for start in range(0, len(dataset), _AT_ONCE)]
    places = np.concatenate([np.zeros(1, dtype=np.int64), *found])
    return places[1:] if len(places) > 1 and places[1] == 0 else places


def back_to_documents(starts: Places, documents: Places, context_length: int) -> Places:
    """Move starts of windows back to where their documents begin, so far as a window from there still reaches them.

    A start that is context_length tokens or more behind its document's beginning stays where it is, so that the ends of
    long documents are seen as well. Of starts that are equally likely, a document gets as many as it has tokens.

    Args:
        starts: where windows would begin, in any shape.
        documents: as `document_starts` returns them.
        context_length: tokens in a window, T.
    """
    begins = documents[np.searchsorted(documents, starts, side="right") - 1]
    return np.where(starts - begins < context_length, begins, starts)


def document_windows(dataset: TokenIds, context_length: int, documents: Places) -> Places:
    """Cut a data set into windows of whole documents, in which every token but the first is a target exactly once.

    A window takes as many documents as fit, of one that is longer than a window its beginning, then the next part.

    Example: with documents at 0, 3 and 5 of nine tokens and a context length of 6: [[0, 5], [5, 3]].

    Returns:
        (number of windows, 2): start and length, as of `windows.sequential_windows`.
    """
    windows, start, last = [], 0, len(dataset) - 1
    while start < last:
        end = min(start + context_length, last)
        if end < last:
            begin = int(documents[np.searchsorted(documents, end, side="right") - 1])
            end = begin if begin > start else end
        windows.append((start, end - start))
        start = end
    return np.array(windows, dtype=np.int64).reshape(-1, 2)
