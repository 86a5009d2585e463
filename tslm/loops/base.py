"""The interface of a loop: it advances until it is done, and its position can be saved and restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Loop(ABC):
    """Call `advance` until `done`.

    `state_dict` holds the loop's whole position. A loop that loads it continues exactly where the saved loop stopped.
    """

    def run(self) -> None:
        """Advance until the loop is done; if it is done already, do nothing."""
        while not self.done:
            self.advance()

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether there is nothing left to do."""

    @abstractmethod
    def advance(self) -> None:
        """Do one unit of work."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the loop's position as primitive values."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position that `state_dict` returned."""
