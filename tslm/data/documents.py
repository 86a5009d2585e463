"""Windows that begin where documents do, and where that is in an array of token ids.

A window cut anywhere begins as a rule in the middle of a document, and the model has to guess at what it is not shown.
Where a model will only ever be asked about documents from their beginnings, to continue them or to score them, its
windows had better begin there too (cf. Ding et al. 2024, "Fewer Truncations Improve Language Modeling").

A document begins at the separator before it (`<|endoftext|>`), which is a model's sign that something new begins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tslm.data.windows import TokenIds, WindowStream

Places = npt.NDArray[np.int64]

_AT_ONCE = 2**24  # ids: they may be a memory map of something larger than the memory


class DocumentStream(WindowStream):
    """A stream of windows that begin where those of `document_windows` do, each of them once in an epoch.

    As in a `WindowStream`, window i is a function of (seed, i). With n windows, those of epoch e are sorted by the
    random numbers e n … e n + n - 1, and window i is the one in place i mod n of epoch ⌊i / n⌋. All are context_length
    tokens long, so behind its whole documents a window has the beginning of the next one.

    Args:
        dataset: token ids, a one-dimensional array of integers, memory map or not.
        context_length: tokens in a window, T.
        seed: any integer.
        documents: where documents begin, as `document_starts` returns it.

    Raises:
        ValueError: the data set is shorter than one window and its last target.
    """

    def __init__(self, dataset: TokenIds, context_length: int, seed: int, documents: Places) -> None:
        super().__init__(dataset, context_length, seed)
        begins = document_windows(dataset, context_length, documents)[:, 0]
        self.begins = np.minimum(begins, self.number_of_starts - 1)  # the last ones end with the data set
        self._orders: dict[int, Places] = {}

    def starts(self, indices: npt.ArrayLike) -> Places:
        """Return where the windows of these indices (k,), each 0 or more, begin in the data set: (k,), int64."""
        epochs, places = np.divmod(np.atleast_1d(indices).astype(np.int64), len(self.begins))
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            of_epoch = epochs == epoch
            found[of_epoch] = self.begins[self._order(epoch)[places[of_epoch]]]
        return found

    def _order(self, epoch: int) -> Places:
        """Return a random permutation of an epoch's windows, the last two of which are kept: batches meet no more."""
        if epoch not in self._orders:
            number = len(self.begins)
            order = np.argsort(self.random(np.arange(epoch * number, (epoch + 1) * number)), kind="stable")
            kept = list(self._orders.items())[-1:]
            self._orders = dict([*kept, (epoch, order)])
        return self._orders[epoch]


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


def document_windows(dataset: TokenIds, context_length: int, documents: Places) -> Places:
    """Cut a data set into windows of whole documents, in which every token but the first is a target exactly once.

    A window takes as many documents as fit, of one that is longer than a window its beginning, then the next part.

    Example: with documents at 0, 3 and 5 of nine tokens and a context length of 6: [[0, 5], [5, 3]].

    Returns:
        (number of windows, 2): start and length, as of `windows.sequential_windows`.
    """
    last = len(dataset) - 1
    parts = np.maximum(-(-np.diff(documents, append=last) // context_length), 1)  # of each document
    numbers = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # 0, 1, … within each document
    bounds = np.repeat(documents, parts) + numbers * context_length
    bounds = np.append(bounds[bounds < last], last)
    farthest = (np.searchsorted(bounds, bounds + context_length, side="right") - 1).tolist()
    chosen = [0]
    while chosen[-1] < len(bounds) - 1:
        chosen.append(farthest[chosen[-1]])
    starts = bounds[chosen]
    return np.stack([starts[:-1], np.diff(starts)], axis=1)
