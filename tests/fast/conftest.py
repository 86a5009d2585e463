"""What several tests of the substitutes share."""

import pytest

from tslm.fast import door
from tslm.fast.cpu import build, words


@pytest.fixture
def no_compiler(monkeypatch):
    """A machine without a C compiler."""

    def forget():
        door.forget()
        for function in (words.is_available, words.library, build.load):
            function.cache_clear()

    monkeypatch.setenv("CC", "there-is-no-compiler")
    forget()
    yield
    monkeypatch.undo()
    forget()
