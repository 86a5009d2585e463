"""Windows that start at document boundaries, and the boundaries in an array of token ids.

A window at a random position usually starts in the middle of a document, where the model lacks the context for its
first predictions. A model that will continue or score documents from their beginning should be trained on windows that
start at boundaries (cf. Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

A document starts at the separator before it (`<|endoftext|>`): the separator tells the model that a new text begins.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tslm.data.windows import TokenIds, WindowStream

Positions = npt.NDArray[np.int64]


class DocumentStream(WindowStream):
    """An endless stream of the windows of `document_windows`, each of them once per epoch.

    As in a `WindowStream`, window i is a function of (seed, i). With n windows, epoch e sorts them by the random
    numbers r_(e·n) … r_(e·n + n - 1), and window i is number i mod n of epoch ⌊i / n⌋ in that order. Every window is
    context_length tokens long: the beginning of the next document fills the space after the last whole one.

    Args:
        dataset: token ids, a one-dimensional array of integers; it may be a memory map.
        context_length: tokens in a window, T.
        seed: any integer.
        documents: the positions at which documents start, from `document_starts`.

    Raises:
        UserError: the data set has fewer than T + 1 tokens, or T is below 1.
        ValueError: the data set is not a one-dimensional array of integers.
    """

    def __init__(self, dataset: TokenIds, context_length: int, seed: int, documents: Positions) -> None:
        super().__init__(dataset, context_length, seed)
        aligned = document_windows(dataset, context_length, documents)[:, 0]
        self.aligned_starts = np.minimum(aligned, self.number_of_starts - 1)  # the last windows end with the data set
        self._orders: dict[int, Positions] = {}  # of the last two epochs: a batch at a boundary needs both

    @property
    def windows_per_pass(self) -> int:
        """The windows of an epoch."""
        return len(self.aligned_starts)

    def starts(self, indices: npt.ArrayLike) -> Positions:
        """Return the positions in the data set at which the windows with indices i ≥ 0 start: (k,) → (k,), int64."""
        epochs, places = np.divmod(np.atleast_1d(indices).astype(np.int64), len(self.aligned_starts))
        starts = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            selected = epochs == epoch
            starts[selected] = self.aligned_starts[self._order(epoch)[places[selected]]]
        return starts

    def _order(self, epoch: int) -> Positions:
        """Return the permutation of the windows in an epoch."""
        if epoch not in self._orders:
            number = len(self.aligned_starts)
            order = np.argsort(self.random(np.arange(epoch * number, (epoch + 1) * number)), kind="stable")
            self._orders = dict([*list(self._orders.items())[-1:], (epoch, order)])
        return self._orders[epoch]


def document_starts(dataset: TokenIds, separator: int, *, chunk_size: int = 2**24) -> Positions:
    """Return the positions at which documents start: 0, and every separator.

    Example: with the separator 0, the ids 5 6 0 7 0 8 have documents at 0, 2 and 4.

    The ids are read in chunks, because the data set may be a memory map larger than the memory.

    Returns:
        (number of documents,), int64, in ascending order.
    """
    found = [start + np.flatnonzero(np.asarray(dataset[start : start + chunk_size]) == separator)
             for start in range(0, len(dataset), chunk_size)]
    return np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *found]))


def document_prefix(dataset: TokenIds, separator: int | None, vocab: Mapping[int, bytes], *, sample: int = 2**24,
                    longest: int = 8) -> list[int]:
    r"""Return the ids that precede most documents: the separator, and white space that follows it.

    A model is asked to begin or continue a document as it was trained. The rule: after the separator, take the most
    frequent next token as long as it is white space and follows in more than half of the documents.

    Example: in `The end.\n<|endoftext|>\nOnce upon a time`, they are the ids of `<|endoftext|>` and `\n`.

    At most `longest` ids are returned, by a look at the first `sample` ids of the data set.

    Returns:
        The ids; none if there is no separator.
    """
    if separator is None:
        return []
    following = np.flatnonzero(np.asarray(dataset[:sample]) == separator) + 1
    number = len(following)
    prefix = [separator] if number else []
    while number and len(prefix) < longest:
        following = following[following < len(dataset)]
        tokens, counts = np.unique(dataset[following], return_counts=True)
        if not len(tokens) or 2 * counts.max() <= number:
            break
        token = int(tokens[counts.argmax()])
        if token == separator or not vocab[token].isspace():
            break
        prefix.append(token)
        following = following[dataset[following] == token] + 1
    return prefix


def document_windows(dataset: TokenIds, context_length: int, documents: Positions) -> Positions:
    """Divide a data set into windows of whole documents; every token except the first is a target exactly once.

    A window takes as many whole documents as fit. A document longer than a window is split at multiples of
    context_length from its start, and its last part may share a window with the documents that follow it.

    Example: with documents at 0, 3 and 5 of nine tokens and a context length of 6, the windows are [[0, 5], [5, 3]].

    Returns:
        (number of windows, 2), int64: start and length, as in `windows.sequential_windows`.
    """
    last = len(dataset) - 1
    parts = np.maximum(-(-np.diff(documents, append=last) // context_length), 1)  # number of parts of each document
    part_index = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # 0, 1, … within each document
    bounds = np.repeat(documents, parts) + part_index * context_length
    bounds = np.append(bounds[bounds < last], last)
    farthest = (np.searchsorted(bounds, bounds + context_length, side="right") - 1).tolist()
    chosen = [0]
    while chosen[-1] < len(bounds) - 1:
        chosen.append(farthest[chosen[-1]])
    starts = bounds[chosen]
    return np.stack([starts[:-1], np.diff(starts)], axis=1)
