"""The data of a training: prepares the text that the user named, and serves it as batches of windows."""

from __future__ import annotations

import json
from typing import Literal

import lightning.pytorch as pl

from tslm.data.batches import Batches, WindowLoaders, check_sizes
from tslm.data.cache import Cache
from tslm.data.documents import DocumentStream, document_prefix
from tslm.data.prepare import prepare
from tslm.data.texts import (
    TOY_VALID_SEED,
    TOY_VALID_STORIES,
    Reading,
    Texts,
    files_corpus,
    read_prompts,
    tinystories_corpus,
    toy_corpus,
)
from tslm.data.toy import Story, sample_stories
from tslm.data.windows import WindowStream
from tslm.errors import UserError
from tslm.tokenizer import END_OF_TEXT, TokenFile, Tokenizer
from tslm.tokenizer.plain import Errors
from tslm.tokenizer.pretokenize import compiled
from tslm.tokenizer.sources import FIELD

OPENINGS = ["Once upon a time", "One day", "There was a little", "In a small"]
PROMPTS_PER_BATCH = 8
EVALUATING = ("validate", "test")


class TextDataModule(WindowLoaders):
    """Windows of a text. If there is no tokenizer or token file for the text yet, they are made first.

    Args:
        corpus: `toy`, the embedded corpus; `tinystories`, downloaded at first use; `files`, the user's. Unless
            given: files if there are train_files or valid_files, else toy.
        train_files: Files, folders or glob patterns to train on. In a text file (UTF-8) the first special token
            separates documents, and the end of the file ends one. In `.jsonl`, `.ndjson` and `.parquet` a record is a
            document. All may be compressed (`.gz`, `.xz`, `.zst`).
        valid_files: The same to validate on; unless given, about 5% of the documents are held out.
        vocab_size: Largest vocabulary, the 256 bytes and the special tokens included; also the model's.
        context_length: Tokens in a window; also the model's.
        batch_size: Windows of one optimizer step, over all processes.
        micro_batch_size: Windows that one process computes at a time; their gradients are added up until the step has
            its batch_size. Peak memory grows with it. Unless given, a GPU computes all windows of its process at once,
            and so does a CPU up to 4,096 tokens; a CPU splits more into parts of at most 2,048 tokens.
        seed: Decides which windows are drawn, and in which order; on the command line, unless given, seed_everything.
        align_documents: Whether windows start at document boundaries, for training and validation, and attention is
            masked across documents; each window then comes once in an epoch. Otherwise windows start anywhere.
        on_device: Whether the token ids are copied to the device once, and the windows gathered there; the windows are
            the same either way. Unless given, only on a CUDA GPU.
        special_tokens: Strings that are one token each; the first one separates documents.
        pattern: How text is split before merging: `gpt2`, `cl100k` (GPT-4's), `none`, or a regular expression of the
            package `regex`. Unless given: that of the tokenizer, or `gpt2` for a new one.
        tokenizer: Folder of an existing tokenizer, a tokenizer.json or a .tiktoken file; unless given, one is trained
            on the training text.
        cache_dir: Where prepared data is kept.
        num_workers: Processes for tokenizing; all cores unless given.
        toy_stories: Stories that the embedded corpus has for training.
        toy_seed: Seed of the embedded corpus.
        prompts: Prompts for `predict`; unless given, a few openings of stories.
        prompts_file: A file with one prompt per line.
        text_field: The field of a JSONL record, or the column of a Parquet file, that holds the document.
        errors: What to do with bytes that are not UTF-8: `strict` stops and names their place, `replace` puts U+FFFD
            in their place and reports their number.
        join_files: Whether several text files are one text in parts, so that no document ends where a file ends.
        allow_special: Whether a special token that is spelled in a prompt, or in a record of a JSONL or Parquet file,
            is recognized; otherwise its spelling is text.
        allow_changed_text: Whether a run may be resumed on a text or tokenizer that differs from its earlier part.

    Raises:
        UserError: a size is impossible, options contradict each other, or the folder holds no tokenizer.
    """

    def __init__(
        self,
        corpus: Literal["toy", "tinystories", "files"] | None = None,
        train_files: list[str] | None = None,
        valid_files: list[str] | None = None,
        vocab_size: int = 10_000,
        context_length: int = 256,
        batch_size: int = 32,
        micro_batch_size: int | None = None,
        seed: int = 0,
        align_documents: bool = False,
        on_device: bool | None = None,
        special_tokens: list[str] = [END_OF_TEXT],  # noqa: B006 (never changed, and a list is what the options want)
        pattern: str | None = None,
        tokenizer: str | None = None,
        cache_dir: str = ".cache/tslm",
        num_workers: int | None = None,
        toy_stories: int = 40_000,
        toy_seed: int = 0,
        prompts: list[str] | None = None,
        prompts_file: str | None = None,
        text_field: str = FIELD,
        errors: Errors = "strict",
        join_files: bool = False,
        allow_special: bool = False,
        allow_changed_text: bool = False,
    ) -> None:
        super().__init__(context_length, batch_size, micro_batch_size, seed, align_documents, on_device)
        check_sizes(vocab_size, len(special_tokens), context_length, batch_size, micro_batch_size, num_workers)
        if align_documents and not special_tokens:
            raise UserError("data.align_documents is on, but data.special_tokens names none to tell documents apart: "
                            f"give --data.special_tokens '[\"{END_OF_TEXT}\"]', or leave --data.align_documents out")
        for name, values in {"train_files": train_files, "valid_files": valid_files, "prompts": prompts}.items():
            if values == []:
                one = "prompt" if name == "prompts" else "file"
                raise UserError(f"data.{name} is an empty list: give at least one {one}, or leave --data.{name} out")
        self.corpus = corpus or ("files" if train_files or valid_files else "toy")
        if self.corpus != "files" and (train_files or valid_files):
            raise UserError(f"data.corpus is {self.corpus!r}, but files are named: leave --data.train_files and "
                            "--data.valid_files out, or give --data.corpus files")
        self.train_files, self.valid_files = train_files, valid_files
        if pattern is not None:
            compiled(pattern)  # checks it
        self.vocab_size, self.special_tokens, self.pattern = vocab_size, list(special_tokens), pattern
        self.tokenizer = None if tokenizer is None else _read_tokenizer(tokenizer, special_tokens)
        self.cache = Cache(cache_dir)
        self.num_workers, self.toy_stories, self.toy_seed = num_workers, toy_stories, toy_seed
        self._check_separator(special_tokens)
        self.prompts, self.prompts_file = prompts, prompts_file
        self.reading = Reading(text_field, errors, join_files, allow_special)
        self.allow_changed_text = allow_changed_text

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Encode with a checkpoint's tokenizer, which defines the ids of its model.

        Raises:
            UserError: `tokenizer` names a different one, and `allow_changed_text` is off.
        """
        if self.tokenizer is not None and self.tokenizer.hash != tokenizer.hash:
            if not self.allow_changed_text:
                raise UserError(f"data.tokenizer has the fingerprint {self.tokenizer.hash[:12]}, but the checkpoint "
                                f"was trained with the tokenizer {tokenizer.hash[:12]}: leave --data.tokenizer out, or "
                                "allow the change with --data.allow_changed_text true")
            return
        self.tokenizer = tokenizer

    def _check_special_tokens(self) -> None:
        """Check that the special tokens are those of an existing tokenizer, which encodes the text."""
        if self.tokenizer is None or self.tokenizer.special_tokens == self.special_tokens:
            return
        found = self.tokenizer.special_tokens
        # The default means those of the tokenizer, and some of them with the same separator contradict nothing.
        if self.special_tokens != [END_OF_TEXT] and not (
                self.special_tokens[:1] == found[:1] and set(self.special_tokens) <= set(found)):
            raise UserError(f"data.special_tokens is {self.special_tokens}, but the tokenizer has {found}: leave "
                            "--data.special_tokens out, or train another tokenizer")
        self._check_separator(found)

    def _check_separator(self, special_tokens: list[str]) -> None:
        if self.corpus != "files" and special_tokens and special_tokens[0] != END_OF_TEXT:
            raise UserError(f"data.corpus {self.corpus!r} separates its stories by {END_OF_TEXT}, but the first of the "
                            f"special tokens is {special_tokens[0]!r}: name {END_OF_TEXT} first")

    def prepare_data(self) -> None:
        """Make the corpus, the tokenizer and the token files that are missing; `predict` needs none of them.

        The files are opened as well, so that a text that is too short stops the run before it writes anything.
        """
        if self._command != "predict":
            self.load()

    def load(self) -> None:
        """Make what is missing, then open the token files.

        Raises:
            UserError: a text is too short for a window, or `prepare` rejects it.
        """
        self._check_special_tokens()
        with self.cache.lock():
            texts = self.find_texts(evaluating=self._command in EVALUATING)
            self.tokenizer, train, valid = prepare(
                texts, self.cache, vocab_size=self.vocab_size, special_tokens=self.special_tokens,
                pattern=self.pattern, tokenizer=self.tokenizer, num_workers=self.num_workers, reading=self.reading,
            )
        self.valid_tokens = TokenFile.open(valid)
        if len(self.valid_tokens) < 2:
            raise UserError("the validation text has fewer than 2 tokens, so it has nothing to predict: give more")
        if self.corpus == "files" and not self.valid_files and len(self.valid_tokens) <= self.context_length:
            print(f"The held-out text has only {len(self.valid_tokens)} tokens, less than a window of "
                  f"{self.context_length}, because the text is short: the validation loss is uncertain.", flush=True)
        if train is not None:
            self.train_tokens = TokenFile.open(train)
            documents = self.document_starts(self.train_tokens)
            given = self.train_tokens.ids, self.context_length, self.seed
            self.windows = WindowStream(*given) if documents is None else DocumentStream(*given, documents)

    def find_texts(self, *, evaluating: bool) -> Texts:
        """Return the training and the validation text; make or download them if they are missing.

        Args:
            evaluating: whether only the validation text is needed.

        Raises:
            UserError: no file is named, or a file cannot be used.
        """
        if self.corpus == "toy":
            return toy_corpus(self.cache, self.toy_stories, self.toy_seed)
        if self.corpus == "tinystories":
            return tinystories_corpus(self.cache)
        if not self.train_files and not (evaluating and self.valid_files):
            raise UserError("the corpus is 'files', but no file is named: give --data.train_files '[\"my.txt\"]', or "
                            "another --data.corpus (toy or tinystories)")
        special_tokens = self.special_tokens if self.tokenizer is None else self.tokenizer.special_tokens
        separator = (special_tokens or [""])[0]
        return files_corpus(self.train_files or [], self.valid_files, separator, self.cache, self.reading,
                            evaluating=evaluating, window=self.context_length)

    @property
    def _command(self) -> str | None:
        return self.trainer.state.fn if self.trainer is not None else None

    def setup(self, stage: str) -> None:
        """Open the token files in this process, and pass what depends on them to the module.

        Raises:
            UserError: the module's model has a smaller vocabulary than the tokenizer.
        """
        if stage == "predict":
            return
        if self.valid_tokens is None:
            self.load()
        module = getattr(self.trainer, "lightning_module", None)
        if module is not None:
            known = getattr(getattr(getattr(module, "model", None), "config", None), "vocab_size", None)
            if known is not None and self.tokenizer is not None and known < self.tokenizer.vocab_size:
                raise UserError(f"the model has vocab_size {known}, but the tokenizer of the data has "
                                f"{self.tokenizer.vocab_size} tokens: make both with the same vocab_size")
            module.tokenizer, module.separator = self.tokenizer, self.separator
            module.micro_batch_size, module.tokens_seen = self.micro_batch_size, None
            module.fingerprints, module.allow_changed_text = self.fingerprints, self.allow_changed_text
            if self.train_tokens is not None:
                assert self.tokenizer is not None
                module.document_prefix = document_prefix(self.train_tokens.ids, self.tokenizer.separator,
                                                         self.tokenizer.vocab)

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the training ids, the validation ids and the tokenizer; what is not loaded is left out."""
        files = {"training text": self.train_tokens, "validation text": self.valid_tokens}
        prints = {} if self.tokenizer is None else {"tokenizer": self.tokenizer.hash}
        return prints | {name: tokens.sha256 for name, tokens in files.items() if tokens is not None}

    @property
    def train_name(self) -> str:
        """What the training text is, for the user."""
        return ", ".join(self.train_files or []) if self.corpus == "files" else self.corpus

    @property
    def valid_name(self) -> str:
        """What the validation text is, for the user."""
        if self.corpus != "files":
            return {"toy": "held-out stories of the embedded corpus", "tinystories": "TinyStories"}[self.corpus]
        return ", ".join(self.valid_files) if self.valid_files else f"documents held out of {self.train_name}"

    @property
    def valid_bytes_per_token(self) -> float:
        """Bytes of documents per validation target; the very first token of the text is never a target."""
        assert self.valid_tokens is not None
        assert self.tokenizer is not None
        first = int(self.valid_tokens.ids[0])
        untargeted = 0 if first == self.tokenizer.separator else len(self.tokenizer.vocab[first])
        return (self.valid_tokens.document_bytes - untargeted) / (len(self.valid_tokens) - 1)

    def held_out_stories(self) -> list[Story] | None:
        """Return the validation stories with their exact probabilities; None if the corpus has no known ones."""
        return sample_stories(TOY_VALID_STORIES, self.toy_seed + TOY_VALID_SEED) if self.corpus == "toy" else None

    def predict_dataloader(self) -> Batches[list[str]]:
        """Serve the prompts in small batches."""
        prompts = self.prompts or (read_prompts(self.prompts_file) if self.prompts_file else OPENINGS)
        return Batches([prompts[i : i + PROMPTS_PER_BATCH] for i in range(0, len(prompts), PROMPTS_PER_BATCH)])


def text_data(trainer: pl.Trainer) -> TextDataModule | None:
    """Return the data of a trainer, if it is a TextDataModule."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, TextDataModule) else None


def _read_tokenizer(path: str, special_tokens: list[str]) -> Tokenizer:
    """Read a tokenizer, in which special tokens of the text are not lost with its tokenizer_config.json."""
    tokenizer = Tokenizer.from_dir(path)
    tokens, known = set(tokenizer.vocab.values()), tokenizer.special_tokens
    if lost := [token for token in special_tokens if token not in known and token.encode() in tokens]:
        raise UserError(f"data.tokenizer is {path}, whose vocabulary has the token {lost[0]!r}, but whose "
                        "tokenizer_config.json does not name it as a special one, so no text would become it: restore "
                        f"that file, or give --data.special_tokens '{json.dumps(known)}'")
    return tokenizer
