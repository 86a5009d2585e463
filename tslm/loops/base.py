"""What a loop is: something that advances until it is done, and whose position can be saved and restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Loop(ABC):
    """Call `advance` until `done`.

    A loop holds its whole position in `state_dict`, so that a loop restored from it goes on exactly where the other
    one stood.
    """

    def run(self) -> None:
        """Advance until done; a loop that is done from the start does nothing."""
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
        """Take over a position that `state_dict` returned."""
