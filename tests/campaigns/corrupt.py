"""`python -m tests.campaigns.corrupt`: damage each kind of file at random, or fill the disk, and use what is left.

A damaged file is detected or harmless. If it is detected, the command ends with exit code 2 and one sentence that names
the file. If it is harmless, because the file was made again, the result is bit-identical to that of the undamaged file.
A notice may announce another result: that of another checkpoint, because the damaged one is skipped; that of other
settings, because some are not taken from the checkpoint; or another rounding, because there are no kernels. Sizes and
times of the files are kept where possible.

Some edits look intended: a `config.yaml` that is still valid YAML, and other settings in a checkpoint that torch has
written again. These are obeyed, so only a crash, a traceback, a hang, or an error that does not name the file is a
failure.

The families `full_disk_…` limit the size of files, or use a small file system, where the process may mount one.
Nothing may be lost, no file may be half written, and the next run with room must have the usual result.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import yaml

from tests.campaigns.campaign import Case, full, run_campaign
from tests.campaigns.child import Use, check_ending, describe
from tests.campaigns.damage import WRONG_TYPES, damage
from tests.campaigns.damaged_world import (
    CACHE,
    RUN,
    SKIPPED,
    World,
    command,
    compare,
    fit,
    generate,
    load,
    predict,
    prepared,
    read_ids,
    read_large_file,
    read_tokenizer,
    repeat,
    resume,
    runs,
    score,
    tokenize,
    tokenize_form,
    trained,
    validate,
    validate_with_tokenizer,
)
from tests.campaigns.full_disk import full_disk
from tslm.tokenizer import Tokenizer

CHECKPOINTS = f"{RUN}/checkpoints/*.ckpt"
NOT_TAKEN = "Not taken from the checkpoint"
WITHOUT_KERNELS = "because the C kernels are missing"  # the notice names the path that is no library


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and return the exit code."""
    families = [checkpoint, token_file, sidecar, vocabulary, merges, configuration, cached_text, library, run_directory,
                text_form, full_disk_checkpoint, full_disk_tokenizing]  # fmt: skip
    description = "Damage each kind of file at random, or fill the disk, and use what is left."
    return run_campaign("tests.campaigns.corrupt", families, description, arguments)


@full(112)
def checkpoint(case: Case) -> None:
    """Resume, evaluate and load with a damaged checkpoint, named or not."""
    world = start(case)
    path = case.rng.choice(world.files(CHECKPOINTS))
    name = str(path.relative_to(world.path))
    named = f"--ckpt_path={name}"
    uses: list[Use] = [resume, validate, predict, generate, partial(generate, f"--ckpt_path={RUN}"),
                       partial(load, name), partial(validate, named), partial(predict, named), runs, compare,
                       score, partial(score, named),
                       partial(resume_from, name)]  # fmt: skip
    harm(case, world, path, [], uses)  # never swapped: another checkpoint under this name is intact


@full(112)
def token_file(case: Case) -> None:
    """Read a damaged token file, or one in the cache."""
    _token_file(case, "ids.bin", "cache/tokens/*.bin")


@full(112)
def sidecar(case: Case) -> None:
    """Read a token file with a damaged sidecar, or one in the cache."""
    _token_file(case, "ids.bin.json", "cache/tokens/*.json")


@full(112)
def vocabulary(case: Case) -> None:
    """Use a tokenizer with a damaged vocab.json or tokenizer_config.json."""
    _tokenizer_file(case, case.rng.choice(["vocab.json", "vocab.json", "tokenizer_config.json"]))


@full(112)
def merges(case: Case) -> None:
    """Use a tokenizer with a damaged merges.txt."""
    _tokenizer_file(case, "merges.txt")


@full(112)
def configuration(case: Case) -> None:
    """Use a damaged config.yaml, or a checkpoint with damaged settings."""
    world = start(case)
    if case.rng.random() < 0.5:
        path = world.path / RUN / "config.yaml"
        before = parsed(path)
        harm(case, world, path, [], [repeat], obeyed=lambda: parsed(path) not in (before, None))
    else:
        path = world.path / RUN / "checkpoints" / "last.ckpt"
        edit_settings(case, path)
        name = f"--ckpt_path={path.relative_to(world.path)}"
        uses: list[Use] = [resume, partial(validate, name), partial(predict, name)]
        judge(case, world, path, case.rng.choice(uses), obeyed=lambda: True)


@full(112)
def cached_text(case: Case) -> None:
    """Train and evaluate with a damaged file in the cache: a text, a hash, a tokenizer, ids."""
    world = start(case)
    found = world.files("cache/**/*")
    path = case.rng.choice(found)
    harm(case, world, path, [other for other in found if other.suffix == path.suffix], [fit, validate, resume])


@full(112)
def library(case: Case) -> None:
    """Train and generate with a damaged library of kernels, or a damaged hash of it."""
    world = start(case)
    path = case.rng.choice(world.files("kernels/tslm/*"))
    uses: list[Use] = [fit, generate]
    harm(case, world, path, [other for other in world.files("kernels/tslm/*") if other.suffix == path.suffix], uses)


@full(112)
def run_directory(case: Case) -> None:
    """Use a run with a damaged file, and with a folder in place of a file or the reverse."""
    world = start(case)
    uses: list[Use] = [resume, validate, predict, generate, fit, runs, compare, score]
    if case.rng.random() < 0.2:
        path = world.path / case.rng.choice([RUN, f"{RUN}/checkpoints", f"{RUN}/tokenizer", "lightning_logs/version_1"])
        if path.exists():
            path.rename(world.path / "moved")
        case.rng.choice([Path.touch, os.mkfifo, lambda path: path.symlink_to("nothing"), lambda path: None])(path)
        case.note(damage="replaced", path=str(path))
        judge(case, world, path, case.rng.choice(uses))
    else:
        (world.path / RUN / "checkpoints.txt").write_text(f"{world.path / RUN}/checkpoints\n")
        found = world.files(f"{RUN}/*", f"{RUN}/tokenizer/*")
        uses.append(partial(validate, f"--data.tokenizer={RUN}/tokenizer"))
        harm(case, world, case.rng.choice(found), found, uses)


@full(112)
def text_form(case: Case) -> None:
    """Tokenize a damaged file that is compressed, or Parquet."""
    world = start(case)
    path = case.rng.choice([path for path in world.files("forms/*") if path.suffix not in (".txt", ".jsonl")])
    twice = path.read_bytes() * 2  # a valid file, of two streams
    harm(case, world, path, [], [partial(tokenize_form, str(path.relative_to(world.path)))],
         obeyed=lambda: path.is_file() and path.read_bytes() == twice)  # fmt: skip


@full(20)
def full_disk_checkpoint(case: Case) -> None:
    """Train until the disk is full; the last checkpoint loads, and the next run resumes from it."""
    full_disk(case, case.rng.choice([fit, resume]), longer)


@full(20)
def full_disk_tokenizing(case: Case) -> None:
    """Train a tokenizer, encode, and prepare data until the disk is full; the next run makes what is missing."""
    use = case.rng.choice([prepared, tokenize, train_tokenizer])
    full_disk(case, use, use)


def start(case: Case) -> World:
    """Return the undamaged folder of a case."""
    world = World.of(case.folder)
    world.fresh()
    return world


def harm(
    case: Case, world: World, path: Path, others: list[Path], uses: Sequence[Use],
    obeyed: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Damage a file, run one of its uses, and judge the outcome."""
    use = case.rng.choice(uses)
    case.note(path=str(path), damage=damage(case.rng, path, [other for other in others if other != path]))
    judge(case, world, path, use, obeyed)


def judge(case: Case, world: World, path: Path, use: Use, obeyed: Callable[[], bool] = lambda: False) -> None:
    """Raise AssertionError unless the damage was detected or harmless, or was an edit that is obeyed."""
    case.note(use=describe(use))
    valid_edit = obeyed()
    outcome = world.use(use)
    case.note(outcome=outcome)
    names = [path.name, path.stem, path.parent.name]
    if not os.path.lexists(path):  # a run without checkpoints is no damage
        names.append("lightning_logs")
    check_ending(outcome, [""] if valid_edit else names)
    if outcome.code != 0 or valid_edit or NOT_TAKEN in outcome.out or WITHOUT_KERNELS in outcome.err:
        return
    allowed = [world.reference(use).result]
    if SKIPPED in outcome.out:  # any of the other checkpoints
        plain = use.func if isinstance(use, partial) else use
        if plain in (validate, predict, generate, score, compare):
            option = "" if plain is compare else "--ckpt_path="
            others = [f"{option}{RUN}/checkpoints/step-0000000{step}.ckpt" for step in (2, 4)]
            allowed += [world.reference(partial(plain, other)).result for other in others]
    if outcome.result not in allowed:
        raise AssertionError(f"found another result without a word: {outcome.result!r:.300}, not {allowed!r:.900}")


def parsed(path: Path) -> object:
    """Return the content of a YAML file, or None if it is not readable."""
    try:
        return yaml.safe_load(path.read_text()) if path.is_file() else None
    except (yaml.YAMLError, ValueError):
        return None


def edit_settings(case: Case, path: Path) -> None:
    """Change a name or the type of a value in the settings of a checkpoint."""
    rng, times = case.rng, path.stat()
    state = torch.load(path, weights_only=True)
    part = state["tslm"]
    while rng.random() < 0.8 and (groups := [each for each in part.values() if isinstance(each, dict) and each]):
        part = rng.choice(groups)
    key = rng.choice(sorted(part, key=repr))
    change = rng.choice(["rename", "remove", "type"])
    value = part[key] if change == "type" else part.pop(key)
    if change == "rename":
        part[f"{key}x"] = value
    elif change == "type":
        part[key] = rng.choice([*(json.loads(text) for text in WRONG_TYPES), b"x", 1.5, torch.zeros(1)])
    torch.save(state, path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    case.note(path=str(path), damage=change, key=key)


def resume_from(path: str) -> object:
    """Resume from a checkpoint."""
    command("fit", f"--ckpt_path={path}", "--trainer.max_steps=6", CACHE)
    return trained()


def longer() -> object:
    """Resume the newest run, up to a step that no run has reached."""
    command("fit", "--ckpt_path=last", "--trainer.max_steps=8", CACHE)
    return trained()


def train_tokenizer() -> object:
    """Train a tokenizer on the command line."""
    command("train-tokenizer", "--input=text.txt", "--vocab_size=290", "--output=made")
    return Tokenizer.from_dir("made").hash


def _token_file(case: Case, *patterns: str) -> None:
    world = start(case)
    path = case.rng.choice(world.files(*patterns))
    uses: list[Use] = [read_ids, read_large_file] if path.parent == world.path else [fit, validate, resume]
    harm(case, world, path, world.files(*patterns), uses)


def _tokenizer_file(case: Case, name: str) -> None:
    world = start(case)
    found = world.files(f"tokenizer/{name}", f"cache/tokenizers/*/{name}")
    path = case.rng.choice(found)
    uses: list[Use] = [read_tokenizer, tokenize, validate_with_tokenizer]
    # A folder without tokenizer_config.json is that of a tokenizer without special tokens.
    harm(case, world, path, world.files(f"other/{name}"), uses if path.parent.name == "tokenizer" else [fit],
         obeyed=lambda: name == "tokenizer_config.json" and not os.path.lexists(path))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
