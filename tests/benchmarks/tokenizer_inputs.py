"""The texts and vocabularies that the tokenizer's figures are measured on, made when a figure first needs them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.benchmarks import corpora
from tests.benchmarks import tokenizer_peers as peers
from tests.benchmarks.scripts import draw_text
from tslm.data.toy import write_corpus
from tslm.errors import UserError
from tslm.tokenizer import END_OF_TEXT, Tokenizer, count_pretokens, merge_pretokens, train_bpe

VOCAB_SIZE = 10_000
_TOY_STORIES = 4_000  # some 2 MB
_STREAM_BYTES, _SCRIPT_BYTES = 100_000_000, 5_000_000


@dataclass
class TokenizerInputs:
    """The inputs of the tokenizer's figures.

    Attributes:
        size: Size of the drawn text in bytes.
        mixed_size: Largest size of the mixed text in bytes.
        runs: Runs on each side. The two slowest peers run once.
        seed: Seed of the drawn and the mixed text.
        workers: Number of processes of tslm and of tiktoken, which starts none itself.
        counts_file: JSON file `{pre-token: count}`; None uses the embedded corpus.
        train_file: A UTF-8 text; None uses the embedded corpus.
        workdir: Folder that keeps the texts.
        scratch: Folder that is removed at the end.
        notify: Prints a sentence about progress.
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
    notify: Callable[[str], None]

    @cached_property
    def toy_text(self) -> Path:
        """Stories of the embedded corpus."""
        path = self.scratch / "toy.txt"
        write_corpus(path, _TOY_STORIES, self.seed)
        return path

    @cached_property
    def counts_path(self) -> Path:
        """JSON file with the count of each pre-token."""
        if self.counts_file is not None:
            return self.counts_file
        path = self.scratch / "counts.json"
        counts = count_pretokens(self.toy_text, [END_OF_TEXT], num_workers=1)
        path.write_text(json.dumps({token.decode(): count for token, count in counts.items()}), encoding="utf-8")
        return path

    @cached_property
    def counts(self) -> dict[str, int]:
        """Count of each pre-token.

        Raises:
            UserError: The file is not a JSON object of pre-tokens and counts.
        """
        try:
            counts = json.loads(self.counts_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{self.counts_path} is not a JSON object {{pre-token: count}}: {error}") from None
        if not isinstance(counts, dict):
            raise UserError(f"{self.counts_path} is JSON, but not an object: give one of the form {{pre-token: count}}")
        return counts

    @cached_property
    def train_text(self) -> str:
        """Text of real sentences."""
        return (self.train_file or self.toy_text).read_text(encoding="utf-8")

    @cached_property
    def drawn_text(self) -> Path:
        """Large text, drawn from the counts."""
        return self._drawn(self.size)

    @cached_property
    def stream_text(self) -> Path:
        """Text whose lines are encoded one by one."""
        return self._drawn(min(self.size, _STREAM_BYTES))

    @cached_property
    def mixed_text(self) -> Path:
        """Text of Python sources and documentation."""
        path = self.workdir / f"mixed-{self.mixed_size}-{self.seed}.txt"
        if not path.exists():
            self.notify("collecting Python sources and documentation")
            corpora.write_mixed_text(path, self.mixed_size, self.seed, corpora.python_folders())
        self.notify(f"the mixed text has {path.stat().st_size / 1e6:,.0f} MB")
        return path

    def script_text(self, script: str) -> Path:
        """Text in a script without spaces, of 5 MB or the size of the drawn text, in documents of 100 kB."""
        path = self.scratch / f"{script}.txt"
        if not path.exists():
            text = draw_text(script, min(self.size, _SCRIPT_BYTES), self.seed)
            step = len(text) if script == "dna" else 50_000
            path.write_text(
                END_OF_TEXT.join(text[at : at + step] for at in range(0, len(text), step)), encoding="utf-8", newline=""
            )
        return path

    @cached_property
    def tokenizer_folder(self) -> Path:
        """Folder of a vocabulary trained on the counts, for the small figures."""
        table = {token.encode(): count for token, count in self.counts.items()}
        return self._saved("of-counts", merge_pretokens(table, VOCAB_SIZE, [END_OF_TEXT]))

    def trained_on(self, text: Path) -> Path:
        """Return the folder of a vocabulary trained on a large text."""
        folder = self.scratch / f"of-{text.stem}"
        if not folder.exists():
            self.notify(f"training the vocabulary of {text.name}")
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
            self.notify(f"drawing {size / 1e6:,.0f} MB of text")
            corpora.write_drawn_text(path, self.counts, size, self.seed)
        return path
