"""What the tokenizer's figures are measured on: options come in, texts and vocabularies go out."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.benchmarks import corpora, peers
from tslm.data.toy import write_corpus
from tslm.tokenizer import END_OF_TEXT, Tokenizer, count_pretokens, merge_pretokens, train_bpe

VOCAB_SIZE = 10_000
_TOY_STORIES = 4_000  # some 2 MB
_STREAM_BYTES = 100_000_000


@dataclass
class Bench:
    """What the figures are measured on; each text and each tokenizer is made when it is first needed.

    Attributes:
        size: bytes of the drawn text.
        mixed_size: bytes of the mixed text, at most.
        runs: on each side; the two slowest peers run once.
        seed: of the drawing.
        workers: processes of tslm, and of tiktoken, which has none of its own.
        counts_file: `{pre-token: count}` as JSON; None takes the embedded corpus.
        train_file: a text; None takes the embedded corpus.
        workdir: where texts are kept.
        scratch: a folder that is removed at the end.
        say: tells the user what is going on.
    """

    size: int
    mixed_size: int
    runs: int
    seed: int
    workers: int
    counts_file: Path | None
    train_file: Path | None
    workdir: Path
    scratch: Path
    say: Callable[[str], None]

    @cached_property
    def toy_text(self) -> Path:
        """Stories of the embedded corpus."""
        path = self.scratch / "toy.txt"
        write_corpus(path, _TOY_STORIES, self.seed)
        return path

    @cached_property
    def counts_path(self) -> Path:
        """The count table as a file."""
        if self.counts_file is not None:
            return self.counts_file
        path = self.scratch / "counts.json"
        counts = count_pretokens(self.toy_text, [END_OF_TEXT], num_workers=1)
        path.write_text(json.dumps({token.decode(): count for token, count in counts.items()}), encoding="utf-8")
        return path

    @cached_property
    def counts(self) -> dict[str, int]:
        """The count table.

        Raises:
            ValueError: the file does not hold one.
        """
        try:
            counts = json.loads(self.counts_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.counts_path} is not a JSON object of pre-tokens and counts: {error}") from None
        if not isinstance(counts, dict):
            raise ValueError(f"{self.counts_path} holds no JSON object; it should be {{pre-token: count}}")
        return counts

    @cached_property
    def train_text(self) -> str:
        """The text of real sentences."""
        return (self.train_file or self.toy_text).read_text(encoding="utf-8")

    @cached_property
    def drawn_text(self) -> Path:
        """The large text, drawn from the counts."""
        return self._drawn(self.size)

    @cached_property
    def stream_text(self) -> Path:
        """The text whose lines are encoded one after the other."""
        return self._drawn(min(self.size, _STREAM_BYTES))

    @cached_property
    def mixed_text(self) -> Path:
        """Python sources and documentation."""
        path = self.workdir / f"mixed-{self.mixed_size}-{self.seed}.txt"
        if not path.exists():
            self.say("collecting Python sources and documentation")
            corpora.write_mixed_text(path, self.mixed_size, self.seed, corpora.python_folders())
        self.say(f"the mixed text has {path.stat().st_size / 1e6:,.0f} MB")
        return path

    @cached_property
    def tokenizer_folder(self) -> Path:
        """The vocabulary of the count table, for the small figures."""
        table = {token.encode(): count for token, count in self.counts.items()}
        return self._saved("of-counts", merge_pretokens(table, VOCAB_SIZE, [END_OF_TEXT]))

    def trained_on(self, text: Path) -> Path:
        """Return the folder of the vocabulary of a large text."""
        folder = self.scratch / f"of-{text.stem}"
        if not folder.exists():
            self.say(f"training the vocabulary of {text.name}")
            self._saved(folder.name, train_bpe(text, VOCAB_SIZE, [END_OF_TEXT], num_workers=self.workers))
        return folder

    def _saved(self, name: str, trained: tuple[dict[int, bytes], list[tuple[bytes, bytes]]]) -> Path:
        folder = self.scratch / name
        peers.save_for_peers(Tokenizer(*trained, [END_OF_TEXT]), folder)
        return folder

    def _drawn(self, size: int) -> Path:
        counts_hash = hashlib.sha256(self.counts_path.read_bytes()).hexdigest()[:8]
        path = self.workdir / f"drawn-{counts_hash}-{size}-{self.seed}.txt"
        if not path.exists():
            self.say(f"drawing {size / 1e6:,.0f} MB of text")
            corpora.write_drawn_text(path, self.counts, size, self.seed)
        return path
