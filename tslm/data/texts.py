"""The texts to train and validate on: the embedded corpus, TinyStories, or the user's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tslm.data.cache import Cache
from tslm.data.holdout import hold_out
from tslm.data.toy import write_corpus
from tslm.data.toy_grammar import load_grammar
from tslm.errors import MissingFileError, UserError
from tslm.tokenizer import Span
from tslm.tokenizer.blocks import read_blocks
from tslm.tokenizer.plain import Errors
from tslm.tokenizer.sources import FIELD, find_documents, find_spans

TOY_VALID_STORIES = 500
TOY_VALID_SEED = 1_000_003  # added to the training seed: the held-out stories are another sample
HELD_OUT_SHARE = 0.05
_BYTES_PER_TOKEN = 4  # about, in English; to hold out a window at least
HELD_OUT_BYTES = 10_000_000  # an upper bound: of a large file, less than the share suffices to measure the loss


class Reading(NamedTuple):
    """How the user's files are read; see `Corpus`."""

    text_field: str = FIELD
    errors: Errors = "strict"
    joined: bool = False
    allow_special: bool = False


class Texts(NamedTuple):
    """The training text and the validation text."""

    train: tuple[Span, ...]
    valid: tuple[Span, ...]


def toy_corpus(cache: Cache, num_stories: int, seed: int) -> Texts:
    """Return the embedded corpus; write it first if the cache lacks it.

    The seed decides the stories; those to validate on are `TOY_VALID_STORIES`.

    Raises:
        UserError: the number of stories is below 1.
    """
    if num_stories < 1:
        raise UserError(f"data.toy_stories is {num_stories}: give --data.toy_stories at least 1")
    folder = cache.folder / "toy" / f"{load_grammar().fingerprint[:12]}-{seed}-{num_stories}"
    train, valid = folder / "train.txt", folder / "valid.txt"
    folder.mkdir(parents=True, exist_ok=True)
    for path, stories, own_seed in ((train, num_stories, seed), (valid, TOY_VALID_STORIES, seed + TOY_VALID_SEED)):
        if path.is_file() and cache.is_intact(path):
            continue
        if path.exists():
            print(f"{path} is written again, because it was changed or damaged.", flush=True)
        write_corpus(path, stories, own_seed, progress=path == train)
        path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
        cache.is_intact(path)
    return Texts((file_span(train),), (file_span(valid),))


def tinystories_corpus(cache: Cache) -> Texts:
    """Return TinyStories; download it first if the cache lacks it.

    Raises:
        UserError: a file was changed since it was downloaded, or `fetch_tinystories` fails.
    """
    from tslm.data.tinystories import fetch_tinystories  # imports the hub's client, which only this corpus needs

    train, valid = fetch_tinystories(cache.folder / "tinystories")
    for path in (train, valid):
        if not cache.is_intact(path):
            raise UserError(f"{path} was changed since it was downloaded: remove it and {path.name}.sha256, and it is "
                            "downloaded again")
    return Texts((file_span(train),), (file_span(valid),))


def files_corpus(
    train_files: Sequence[str],
    valid_files: Sequence[str] | None,
    separator: str,
    cache: Cache,
    reading: Reading = Reading(),  # noqa: B008 (never changed)
    *,
    evaluating: bool = False,
    window: int = 0,
) -> Texts:
    """Return the user's texts; without validation files, some documents of the training text are held out.

    With `evaluating`, the training files are ignored if there are validation files; they may be on another machine. The
    held-out text should have the tokens of a window at least.

    Raises:
        MissingFileError: a file does not exist.
        UserError: a file is empty, is not text, or is too short to hold anything out.
    """
    def spans(files: Sequence[str]) -> list[Span]:
        """Find the files of patterns and folders, and print what was noticed about them."""
        found, notices = find_spans(files, lambda path: cache.plain(path, reading.text_field, reading.errors),
                                    reading.text_field)
        for notice in notices:
            print(notice, flush=True)
        return found

    valid = spans(valid_files or ())
    train = [] if valid and evaluating else spans(train_files)
    _report_copies(train, valid, separator.encode(), cache)
    if valid:
        return Texts(tuple(train), tuple(valid))
    least = _BYTES_PER_TOKEN * (window + 1)
    try:
        train, valid, notice = hold_out(train, separator.encode(), HELD_OUT_SHARE, HELD_OUT_BYTES, least)
    except UserError:
        for _ in read_blocks(train, []):
            pass  # if a file is not text at all, this raises the more useful error
        raise
    if notice:
        print(notice, flush=True)
    return Texts(tuple(train), tuple(valid))


def _report_copies(train: Sequence[Span], valid: Sequence[Span], separator: bytes, cache: Cache) -> None:
    """Print a notice for each file whose content is given twice."""
    seen: dict[str, tuple[str, Span]] = {}
    for role, spans in (("training", train), ("validation", valid)):
        for span in spans:
            other_role, other = seen.setdefault(cache.content_hash(Path(span.path)), (role, span))
            if other is not span:
                number = sum(1 for _ in find_documents(span, separator))
                where = f"twice in the {role} text" if role == other_role else "in the training and the validation text"
                same = span.label if span.label == other.label else f"{span.label}, with the content of {other.label},"
                print(f"{same} is {where}: {number:,} {'document' if number == 1 else 'documents'}.", flush=True)


def file_span(path: str | Path) -> Span:
    """Return the span of a whole file.

    Raises:
        MissingFileError: it does not exist.
        UserError: it is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no text file at {path}: give --data.train_files files that exist")
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path} is empty: give a file with text in it")
    return Span(str(path), 0, size)


def read_prompts(path: str) -> list[str]:
    """Read one prompt per line; empty lines are skipped, and so is a byte order mark at the start.

    Lines end with a line feed, or with a carriage return and a line feed. Other characters are a part of the prompt.

    Raises:
        MissingFileError: there is no such file.
        UserError: it holds no prompt or is not UTF-8.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"{path} is no file of prompts: give --data.prompts_file a text file, one a line")
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    if not lines:
        raise UserError(f"{path} holds no prompt: write one per line")
    return lines
