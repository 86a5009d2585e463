"""Links, names with dots, absolute names and odd characters, which lead a command out of its folders."""

import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.campaigns.attack_inputs import with_value
from tests.campaigns.attack_place import COMMAND_LINES, COMMANDS, Place
from tests.campaigns.campaign import Case

ODD_NAMES = ["a\0b", "a\nb", "\0", "x" * 5000, "é" * 300, "../" * 2000, "~root/x", "$HOME", "\x1b[2J", "nul\t", "-"]


def use(case: Case, place: Place, *options: str, commands: tuple[str, ...] = COMMAND_LINES) -> None:
    """Run a command on the newest run."""
    command = case.rng.choice(commands)
    wanted = case.rng.choice(["last", "best", "lightning_logs/version_0"])
    case.note(command=command, wanted=wanted)
    place.attack(command, [*COMMANDS[command], f"--ckpt_path={wanted}", *options])


def folder_file(case: Case, place: Place) -> None:
    """The file in a run that names the folder of its checkpoints names anything."""
    name = case.rng.choice([*ODD_NAMES, str(place.outside), str(place.outside / "folder"), "", "..", "/", "/dev/null",
                            "../../../attacked/outside"])
    run = case.rng.choice([place.run, place.run.with_name("version_7")])
    run.mkdir(exist_ok=True)
    case.note(name=name, run=run.name)
    (run / "checkpoints.txt").write_bytes(case.rng.choice([name.encode(), b"\xff" + name.encode()]))
    use(case, place)


def folder_file_that_is_none(case: Case, place: Place) -> None:
    """`checkpoints.txt` is a folder, or a link to itself, or to a file elsewhere."""
    path = place.run / "checkpoints.txt"
    case.rng.choice([path.mkdir, lambda: path.symlink_to(path), lambda: path.symlink_to("/etc/hostname"),
                     lambda: path.symlink_to(place.outside / "precious.txt")])()
    use(case, place)


def linked_run(case: Case, place: Place) -> None:
    """A run is a link to a folder elsewhere."""
    place.run.with_name(case.rng.choice(["version_7", "version_1"])).symlink_to(
        case.rng.choice([place.outside, place.outside / "folder", place.outside / "new", place.run]))
    use(case, place)


def linked_checkpoints(case: Case, place: Place) -> None:
    """The folder of the checkpoints is a link to a folder elsewhere."""
    target = place.outside / "folder"
    for path in place.checkpoints.iterdir():
        shutil.copy(path, target / path.name)
    shutil.rmtree(place.checkpoints)
    place.checkpoints.symlink_to(target)
    use(case, place)


def linked_checkpoint(case: Case, place: Place) -> None:
    """A checkpoint is a link to a file elsewhere: to a checkpoint, to another file, or to none."""
    name = case.rng.choice(["last.ckpt", "best.ckpt", "step-00000001.ckpt", "step-00000009.ckpt"])
    path = place.checkpoints / name
    target = case.rng.choice(["precious.txt", "absent", "copy.ckpt"])
    shutil.copy(place.checkpoints / "last.ckpt", place.outside / "copy.ckpt")
    path.unlink(missing_ok=True)
    path.symlink_to(place.outside / target)
    use(case, place)


def linked_run_files(case: Case, place: Place) -> None:
    """Files that a command writes in a run are links to files elsewhere."""
    for name in ("predictions.jsonl", "summary.json", "config.yaml", "metrics.csv", "tokenizer"):
        path = place.run / name
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        path.symlink_to(place.outside / case.rng.choice(["precious.txt", "folder", "absent"]))
    use(case, place)


def linked_temporary_files(case: Case, place: Place) -> None:
    """The names of temporary files are links to files elsewhere."""
    for folder, name in ((place.run, ".predictions.jsonl.{}.new"), (place.project / "c", ".hashes.json.{}.tmp"),
                         (place.run, ".summary.json.{}.new")):
        for number in range(os.getpid() - 5, os.getpid() + 400):  # those of the next processes
            (folder / name.format(number)).symlink_to(place.outside / "precious.txt")
    use(case, place, "--data.vocab_size=300", commands=("predict", "fit"))


def linked_cache_parts(case: Case, place: Place) -> None:
    """A part of the cache is a link to a file or a folder elsewhere."""
    name = case.rng.choice(["lock", "hashes.json", "tokens", "tokenizers", "toy", ".x.tmp"])
    path = place.project / "c" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    target = place.outside / case.rng.choice(["precious.txt", "folder", "absent"])
    path.symlink_to(target)
    case.note(part=name, target=target.name)
    corpus = ["--data.corpus=toy", "--data.toy_stories=30"] if name == "toy" else ['--data.train_files=["s.txt"]']
    place.attack("fit", [*COMMANDS["fit"], *small(), *corpus])


def linked_cache_files(case: Case, place: Place) -> None:
    """A file or a folder deep in the cache is a link to one elsewhere, and the data is made again."""
    cache = place.project / "c"
    inner = sorted(cache.glob("*/*"))
    for path in case.rng.sample(inner, case.rng.randint(1, len(inner))):
        target = place.outside / ("folder" if path.is_dir() else case.rng.choice(["precious.txt", "absent"]))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target)
    use(case, place, commands=("fit", "validate"))


def linked_cache(case: Case, place: Place) -> None:
    """The files of a cached tokenizer are links to files elsewhere."""
    for path in (place.project / "c" / "tokenizers").glob("*/*"):
        path.unlink()
        path.symlink_to(place.outside / case.rng.choice(["precious.txt", "absent"]))
    place.attack("fit", [*COMMANDS["fit"], *small(), '--data.train_files=["s.txt"]'])


def names_in_an_archive(case: Case, place: Place) -> None:
    """The records of a checkpoint have names with dots, or absolute ones."""
    evil = io.BytesIO()
    name = case.rng.choice(["../../../../attacked/outside/x", str(place.outside / "x"), "last/../../x", "\\..\\x",
                            "last/" + "d/" * 3000, "last/data/../../../../attacked/outside/precious.txt"])
    with zipfile.ZipFile(place.checkpoints / "last.ckpt") as old, zipfile.ZipFile(evil, "w") as new:
        top = case.rng.choice([None, name.rpartition("/")[0] or "x"])
        for each in old.namelist():
            new.writestr(each if top is None else f"{top}/{each.partition('/')[2]}", old.read(each))
        new.writestr(name, "x")
    write(place, evil.getvalue())
    use(case, place)


def names_in_a_tokenizer(case: Case, place: Place) -> None:
    """The tokenizer in a checkpoint has files with names that lead elsewhere."""
    change(place, "tslm.tokenizer", {f"../../../attacked/outside/{name}": "x" for name in ("x", "precious.txt")},
           merge=True)
    use(case, place)


def best_elsewhere(case: Case, place: Place) -> None:
    """The best checkpoint is said to be in a folder elsewhere."""
    shutil.copy(place.checkpoints / "last.ckpt", place.outside / "best.ckpt")
    folder = case.rng.choice([*ODD_NAMES, str(place.outside), "/proc/self", "/dev"])
    change(place, "callbacks.Checkpoints", {"folder": folder, "best_step": case.rng.choice([1, 0, 10**15]),
                                            "best_loss": 0.5}, merge=True)
    use(case, place, commands=("fit", "fit", "predict"))


def odd_names_in_settings(case: Case, place: Place) -> None:
    """The texts that a checkpoint names have odd names."""
    key, name = case.rng.choice(["train_files", "valid_files", "prompts_file"]), case.rng.choice(ODD_NAMES)
    change(place, f"tslm.config.data.{key}", name if key == "prompts_file" else [name])
    case.note(key=key, name=name)
    use(case, place)


def odd_names_in_yaml(case: Case, place: Place) -> None:
    """A configuration file names files with odd names."""
    key = case.rng.choice(["data.train_files", "data.valid_files", "data.tokenizer", "data.cache_dir", "ckpt_path",
                           "data.prompts_file"])
    name = case.rng.choice(ODD_NAMES)
    case.note(key=key, name=name)
    value = [name] if key.endswith("files") else f"c/{name}" if key.endswith("dir") else name
    (place.project / "odd.yaml").write_text(yaml.dump(with_value({}, key.split("."), value)))
    command = case.rng.choice(["fit", "validate", "predict"])
    data = [] if key == "data.train_files" or command != "fit" else ['--data.train_files=["s.txt"]']
    options = [option for option in COMMANDS[command] if key.endswith("dir") and "cache_dir" not in option]
    place.attack(command, [*(options or COMMANDS[command]), *(small() if command == "fit" else []), *data,
                           "--config=odd.yaml"])


def small() -> list[str]:
    """Return the sizes of a tiny model."""
    return ["--data.vocab_size=280", "--data.context_length=16", "--data.batch_size=2", "--model.d_model=16",
            "--model.num_layers=1", "--model.num_heads=2", "--model.d_ff=32", "--trainer.accelerator=cpu",
            "--trainer.precision=32-true", "--data.num_workers=1", "--generation.max_new_tokens=1"]


def change(place: Place, key: str, value: Any, *, merge: bool = False) -> None:
    """Change a part of the newest checkpoint."""
    state = torch.load(place.checkpoints / "last.ckpt", weights_only=True)
    if merge:
        old = state
        for name in key.split("."):
            old = old[name]
        value = old | value
    buffer = io.BytesIO()
    torch.save(with_value(state, key.split("."), value), buffer)
    write(place, buffer.getvalue())


def write(place: Place, data: bytes) -> None:
    """Replace all checkpoints of the run by one."""
    for path in place.checkpoints.iterdir():
        path.unlink()
    for name in ("step-00000001.ckpt", "last.ckpt", "best.ckpt"):
        Path(place.checkpoints / name).write_bytes(data)


PATHS = [folder_file, folder_file_that_is_none, linked_run, linked_checkpoints, linked_checkpoint, linked_run_files,
         linked_temporary_files, linked_cache_parts, linked_cache_files, linked_cache, names_in_an_archive,
         names_in_a_tokenizer, best_elsewhere, odd_names_in_settings, odd_names_in_yaml]
