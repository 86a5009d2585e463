"""TinyStories (Eldan & Li 2023): a folder in, the paths of its training and validation text out, fetched if missing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = "roneneldan/TinyStories"
TRAIN, VALID = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
SECONDS_TO_ANSWER = 5.0


def fetch_tinystories(cache_dir: str | Path, *, progress: bool = True) -> tuple[Path, Path]:
    """Return the training and validation text, 2.2 GB and 22 MB, and download what is not there yet.

    The environment variable HF_ENDPOINT names a mirror. Nothing but the files is asked for. A broken transfer is
    resumed; a file appears under its name when it is whole and its checksum is right. Once both are there no network is
    needed.

    Args:
        cache_dir: where the two files lie or shall lie, under their own names.
        progress: show a progress bar for each file.

    Raises:
        ConnectionError: no answer, or a broken one; the message says what to do instead.
        OSError: the folder cannot be written to, or the disk is full.
    """
    folder = Path(cache_dir)
    for name in (TRAIN, VALID):
        if not (folder / name).is_file():
            _fetch(name, folder, progress)
    return folder / TRAIN, folder / VALID


def _fetch(name: str, folder: Path, progress: bool) -> None:
    # Imported here, so that nobody who has the files waits for it. The endpoint is passed on, because the library
    # reads the variable only once.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    incoming = folder / f"{name}.incoming"
    try:
        with _telemetry_off(), _progress_bars(progress):
            # Asked first, because without an answer hf_hub_download tries for up to six minutes.
            url = hf_hub_url(REPOSITORY, name, repo_type="dataset", endpoint=endpoint)
            etag = get_hf_file_metadata(url, token=False, timeout=SECONDS_TO_ANSWER).etag
            hf_hub_download(REPOSITORY, name, repo_type="dataset", endpoint=endpoint, token=False, local_dir=incoming)
        _check(incoming / name, etag)
        os.replace(incoming / name, folder / name)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise OSError(error.errno, os.strerror(error.errno), str(error.filename or folder)) from error
        raise ConnectionError(
            f"TinyStories could not be fetched from {endpoint} ({_reason(error)}): download {TRAIN} and {VALID} by "
            f"hand from https://huggingface.co/datasets/{REPOSITORY} and pass them with `--config configs/text.yaml "
            "--data.train_files '[…]' --data.valid_files '[…]'`, or set HF_ENDPOINT to a mirror, or use the quick "
            "start `python -m tslm fit`, which needs no network"
        ) from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _check(path: Path, etag: str | None) -> None:
    """Compare a file with its ETag, which for large files is their SHA-256; the library compares sizes only."""
    if etag is None or not re.fullmatch("[0-9a-f]{64}", etag):
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != etag:
        raise ConnectionError(f"{path.name} arrived with the SHA-256 {found[:8]}… instead of {etag[:8]}…")


@contextlib.contextmanager
def _telemetry_off() -> Iterator[None]:
    """Ask for the two files and for nothing else.

    Left to itself, the library fetches from the hub a list of programs that it may run under, and tells the server
    which of them it found and which torch is installed. It reads its environment variable against this only when it is
    imported, so the constant behind that is set.
    """
    from huggingface_hub import constants

    before, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:160]} …"
