r"""The embedded corpus: short stories from a grammar whose every choice has a known probability.

Seeds come in; stories go out, each with the exact log-probability of its text. No model can give held-out stories a
higher probability on average than the grammar itself, so the grammar's own score is the floor of every model's loss.

What is scored is `text`: the story's characters from its first to its last, and the fact that it ends there. The
newline and the `<|endoftext|>` line that follow each story in a corpus file are certain and cost nothing, so
`"<|endoftext|>\n" + text + "\n<|endoftext|>"`, scored after its first token, has the same floor.
"""

import os
import random
from bisect import bisect
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from tslm.data.toy_grammar import Draw, Part, Recall, Word, load_grammar
from tslm.data.toy_parser import story_log_prob
from tslm.tokenizer import END_OF_TEXT

__all__ = [
    "END_OF_TEXT", "Story", "grammar_fingerprint", "iter_stories", "sample_stories", "story_log_prob", "write_corpus",
]


class Story(NamedTuple):
    """A story and log p(text) in nats."""

    text: str
    log_prob: float


def sample_stories(count: int, seed: int) -> list[Story]:
    """Return the first `count` stories of `iter_stories(seed)`."""
    return list(islice(iter_stories(seed), count))


def iter_stories(seed: int) -> Iterator[Story]:
    """Yield independent stories for ever; the same seed gives the same texts on every machine.

    Each story is derived top-down: a stack holds what is still to be written, `memory` the words to be repeated.
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
            elif isinstance(part, Recall):
                written.append(memory[part.slot].forms[part.form])
            elif isinstance(part, Draw):
                if part.only_once and part.slot in memory:
                    written.append(memory[part.slot].forms[part.form])
                    continue
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

    The file appears whole or not at all: it is written under another name and then renamed.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    stories = islice(iter_stories(seed), num_stories)
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for story in tqdm(stories, "write stories", num_stories, unit=" stories", disable=not progress):
                file.write(f"{story.text}\n{END_OF_TEXT}\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def grammar_fingerprint() -> str:
    """Return a hash that changes whenever a story of some seed could: the key under which a corpus is cached."""
    return load_grammar().fingerprint
