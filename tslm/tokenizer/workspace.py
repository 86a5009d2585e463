"""Room for intermediate arrays that is used again for each block of a text.

What numpy allocates anew lies somewhere else each time, so its writes go past the cache; counting takes half as long
again without this.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)


class Workspace:
    """Named arrays that last: each is what it was until the next array of that name is asked for."""

    def __init__(self) -> None:
        self._kept: dict[str, npt.NDArray[Any]] = {}

    def array(self, name: str, size: int, dtype: type[Scalar]) -> npt.NDArray[Scalar]:
        """Return an array of `size` elements, whose content is not defined."""
        kept = self._kept.get(name)
        if kept is None or len(kept) < size:
            kept = self._kept[name] = np.empty(size + size // 8, dtype)
        return kept[:size]
