r"""The embedded corpus: short stories from a grammar in which every choice has a known probability.

Each story comes with the exact log-probability of its text. No model can assign held-out stories a higher probability
on average than the grammar does, so the grammar's own negative log-probability is the floor of every model's loss.

The log-probability covers the characters of `text` and the fact that the story ends after them. In a corpus file, a
newline and a line `<|endoftext|>` follow each story. Both are certain and add nothing, so
`"<|endoftext|>\n" + text + "\n<|endoftext|>"`, scored after its first token, has the same floor.
"""

import os
import random
from bisect import bisect
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from tqdm import tqdm

from tslm.data.toy_grammar import Backreference, Draw, Part, Word, load_grammar
from tslm.files import atomic_write
from tslm.tokenizer import END_OF_TEXT


class Story(NamedTuple):
    """A story's text and log p(text) in nats."""

    text: str
    log_prob: float


def sample_stories(count: int, seed: int) -> list[Story]:
    """Return the first `count` stories of `iter_stories(seed)`."""
    return list(islice(iter_stories(seed), count))


def iter_stories(seed: int) -> Iterator[Story]:
    """Yield independent stories without end; the same seed gives the same texts on every machine.

    Each story is derived top-down. `stack` holds the parts still to be written, `memory` the words drawn into slots.
    """
    grammar = load_grammar()
    uniform = random.Random(seed).random  # the one method whose sequence Python guarantees across versions
    while True:
        written: list[str] = []
        log_prob = 0.0
        memory: dict[int, Word] = {}
        stack: list[Part] = [grammar.start]
        while stack:
            part = stack.pop()
            if isinstance(part, str):
                written.append(part)
            elif isinstance(part, Backreference) or (isinstance(part, Draw) and part.only_once and part.slot in memory):
                written.append(memory[part.slot].forms[part.form])
            elif isinstance(part, Draw):
                index = bisect(part.cumulative, uniform())
                written.append(part.texts[index])
                log_prob += part.log_probs[index]
                if part.slot >= 0:
                    memory[part.slot] = part.words[index]
            else:
                index = bisect(part.cumulative, uniform())
                log_prob += part.log_probs[index]
                stack.extend(reversed(part.alternatives[index]))
        yield Story("".join(written), log_prob)


def write_corpus(path: str | os.PathLike[str], num_stories: int, seed: int, *, progress: bool = False) -> None:
    """Write the first `num_stories` stories of `seed` to `path`, each followed by a line `<|endoftext|>`.

    The file is written under a temporary name and then renamed, so an incomplete file never has the name `path`.
    """
    stories = islice(iter_stories(seed), num_stories)
    with atomic_write(path) as file:
        for story in tqdm(stories, "write stories", num_stories, unit=" stories", disable=not progress):
            file.write(f"{story.text}\n{END_OF_TEXT}\n".encode())
