"""Checks every file that runs have written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tslm.errors import MissingFileError, UserError
from tslm.files import is_locked
from tslm.model import TransformerConfig, TransformerLM
from tslm.tokenizer import Tokenizer
from tslm.tokenizer.serialization import tokenizer_from_texts
from tslm.training.checkpoint import check_shapes, fit_part, read_checkpoint
from tslm.training.parts import check_optimizer
from tslm.training.run_table import find_runs, read_metrics, read_summary
from tslm.training.runs import FOLDER_FILE, MODEL_PREFIX, checkpoint_folder
from tslm.training.saved_settings import own_class, read_architecture

Read = Callable[[Path], Any]


def verify_runs(folder: str | Path, read_config: Read) -> None:
    """Check every file of every run, and print a line for each run.

    `read_config` reads a YAML file and raises an error if it is damaged.

    Raises:
        MissingFileError: there is no run.
        UserError: files are damaged; the message names them.
    """
    bad: list[str] = []
    for run in tqdm(find_runs(folder), desc="verifying", unit=" runs", disable=None):
        number, damaged, leftovers = verify_run(run, read_config)
        line = f"{run.name}: {number} files, " + (f"{len(damaged)} of them damaged" if damaged else "all intact")
        if leftovers:
            line += f"; left by a killed process: {', '.join(leftovers)}"
        tqdm.write(line)
        bad += damaged
    if bad:
        raise UserError(f"{len(bad)} {'file is' if len(bad) == 1 else 'files are'} damaged: {'; '.join(bad)}")


def verify_run(run: Path, read_config: Read) -> tuple[int, list[str], list[str]]:
    """Check the files of a run.

    Returns:
        The number of files; a sentence for each damaged one; and the names of the temporary files of killed processes.
    """
    damaged, hashes, number = [], dict[str, Path](), 0
    for path, check in _checks(run, read_config):
        try:
            found = check(path)
        except Exception as error:  # the readers raise many types for damaged files
            if not path.exists() and is_locked(run):  # the run has replaced it since it was listed
                continue
            reason = " ".join(str(error).split()) or type(error).__name__
            damaged.append(reason if str(path) in reason else f"{path} ({reason})")
        else:
            if isinstance(found, str):
                hashes.setdefault(found, path)
        number += 1
    if len(hashes) > 1:
        (one, first), (other, second), *_ = hashes.items()
        damaged.append(f"{first} has the tokenizer {one[:12]}, but {second} has {other[:12]}")
    chosen = (run / FOLDER_FILE).exists()  # a folder elsewhere has a check of its own
    if (run / "summary.json").exists() and not chosen and not any(checkpoint_folder(run).glob("*.ckpt")):
        damaged.append(f"{run} has ended, but {checkpoint_folder(run)} has no checkpoint")
    leftovers = {path.name for place in (run, checkpoint_folder(run)) for path in place.glob(".*.new")
                 if not is_locked(path)}
    return number, damaged, sorted(leftovers)


def _checks(run: Path, read_config: Read) -> Iterator[tuple[Path, Read]]:
    """Yield the files of a run, each with its check, which returns the hash of the tokenizer if the file has one."""
    folder, seen = checkpoint_folder(run), set[tuple[int, int]]()
    if (run / FOLDER_FILE).exists():
        yield run / FOLDER_FILE, _check_folder
    for path in sorted(folder.glob("*.ckpt")):
        with suppress(FileNotFoundError):  # the run has replaced it since it was listed
            stat = path.stat()
            if (stat.st_dev, stat.st_ino) not in seen:  # `last` and `best` are other names of the file of a step
                seen.add((stat.st_dev, stat.st_ino))
                yield path, check_checkpoint
    if (run / "tokenizer").exists():
        yield run / "tokenizer", lambda path: Tokenizer.from_dir(path).hash
    for pattern, check in (("*.yaml", read_config), ("summary.json", read_summary), ("metrics.csv", read_metrics),
                           ("*.jsonl", _check_lines), ("events.*", _check_events)):
        yield from ((path, check) for path in sorted(run.glob(pattern)))


def check_checkpoint(path: Path) -> str | None:
    """Read a whole checkpoint of `fit`, check all its parts, and return the hash of its tokenizer, if it has one.

    Raises:
        UserError: the file is damaged; a part is missing or has another form; the parts do not belong together; or a
            weight is not finite.
    """
    state = read_checkpoint(path)
    own = fit_part(state, path, resume=True)
    architecture = read_architecture(own, path, for_sizes=True)
    with_class = own_class(architecture["ffn"])  # which is not imported, so that only the other parts are checked
    with torch.device("meta"):  # only the shapes
        model = TransformerLM(TransformerConfig(**architecture | ({"ffn": "swiglu"} if with_class else {})))
    weights = {name.removeprefix(MODEL_PREFIX): weight for name, weight in state["state_dict"].items()}
    have, want = ({name: weight for name, weight in side.items() if not (with_class and ".ffn." in name)}
                  for side in (weights, model.state_dict()))
    check_shapes(have, want, str(path))
    if not with_class and (optimizer := own.get("optimizer", "AdamW")) is not None:
        check_optimizer(state["optimizer_states"][0], optimizer, model, path)
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"{path} holds weights in {name} that are not finite")
    if own["tokenizer"] is None:
        return None
    found = tokenizer_from_texts(own["tokenizer"], str(path)).hash
    if found != (stated := own.get("fingerprints", {}).get("tokenizer", found)):
        raise UserError(f"{path} holds the tokenizer {found[:12]}, but its fingerprint is {stated[:12]}")
    return found


def _check_folder(path: Path) -> None:
    folder = path.read_text(encoding="utf-8").strip()
    if not Path(folder).is_dir():
        raise MissingFileError(f"{path} names the folder {folder}, which does not exist")


def _check_lines(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def _check_events(path: Path) -> None:
    """Check the checksums of TensorBoard's records. A killed process leaves the last record cut; this is no damage."""
    from tensorboard.compat.tensorflow_stub import errors  # type: ignore[import-untyped]
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New  # type: ignore[import-untyped]

    reader = PyRecordReader_New(str(path))
    try:
        while True:
            reader.GetNext()
    except errors.OutOfRangeError:
        return
    except errors.DataLossError as error:
        if "truncated" not in str(error):
            raise

