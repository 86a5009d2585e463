"""Download TinyStories (Eldan & Li 2023)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tslm.errors import UserError

REPOSITORY = "roneneldan/TinyStories"
TRAIN, VALID = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"


class DownloadError(UserError, ConnectionError):
    """The server did not answer, refused, or sent something else; the sentence says what to do instead."""


def fetch_tinystories(folder: str | Path, *, timeout: float = 5.0) -> tuple[Path, Path]:
    """Return the paths of the training text (2.2 GB) and the validation text (22 MB); download what is missing.

    The environment variable HF_ENDPOINT names a mirror. Nothing else is requested from the server. An interrupted
    transfer is resumed. A file gets its name only after its checksum was verified. If both files exist, no network is
    used.

    `timeout` is how many seconds to wait for the server's first answer.

    Raises:
        DownloadError: the download failed.
        OSError: the folder is not writable, or the disk is full.
    """
    folder = Path(folder)
    for name in (TRAIN, VALID):
        if not (folder / name).is_file():
            _fetch(name, folder, timeout)
    return folder / TRAIN, folder / VALID


def _fetch(name: str, folder: Path, timeout: float) -> None:
    # Imported here because a user who has the files should not wait for it. The endpoint is passed explicitly because
    # the library reads the variable only once, when it is imported.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    folder.mkdir(parents=True, exist_ok=True)
    incoming = folder / f"{name}.incoming"
    try:
        with _telemetry_off():
            # A request with a short timeout first: if there is no answer, hf_hub_download retries for six minutes.
            url = hf_hub_url(REPOSITORY, name, repo_type="dataset", endpoint=endpoint)
            etag = get_hf_file_metadata(url, token=False, timeout=timeout).etag
            if etag is None or not re.fullmatch("[0-9a-f]{64}", etag):
                raise ConnectionError(f"the server gives no SHA-256 of {name}, so it could not be verified")
            hf_hub_download(REPOSITORY, name, repo_type="dataset", endpoint=endpoint, token=False, local_dir=incoming)
        with open(incoming / name, "rb") as file:  # the library compares only sizes
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != etag:
            raise ConnectionError(f"{name} arrived with the SHA-256 {found[:8]}… instead of {etag[:8]}…")
        os.replace(incoming / name, folder / name)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise OSError(error.errno, os.strerror(error.errno), str(error.filename or folder)) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(f"TinyStories could not be fetched from {endpoint} ({reason[:160]}): download {TRAIN} and "
                            f"{VALID} by hand from https://huggingface.co/datasets/{REPOSITORY} and give them with "
                            "`--config configs/text.yaml --data.train_files '[…]' --data.valid_files '[…]'`, or set "
                            "HF_ENDPOINT to a mirror, or use the quick start `python -m tslm fit`, which needs no "
                            "network") from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


@contextlib.contextmanager
def _telemetry_off() -> Iterator[None]:
    """Keep the library from requests other than the two files.

    By default it downloads a list of programs that may have started it, and reports to the server which of them it
    found and which version of torch is installed. The environment variable that disables this is read only when the
    library is imported, so the constant that holds its value is set instead.
    """
    from huggingface_hub import constants

    before, constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_TELEMETRY, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before
