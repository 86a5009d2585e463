"""`python -m tests.campaigns.attack`: hostile files that try to run code, to write elsewhere, or to use up memory.

Each attack runs in a forked child under watch. It must end with one sentence (exit code 2) or do nothing (exit code 0).
A failure is: the canary file exists; another program was started; the module `planted` was imported; a file outside the
folders of runs and caches was opened for writing or differs afterwards; the environment changed; a traceback, a crash,
a hang, or more than two gigabytes of memory. Paths that the user names on the command line are trusted.
"""

import os
import random
import sys
from collections.abc import Sequence
from typing import Any

import torch
import yaml

from tests.campaigns.attack_bombs import BOMBS
from tests.campaigns.attack_inputs import PLACES, planted_checkpoint, shapes, with_value
from tests.campaigns.attack_libraries import LIBRARIES
from tests.campaigns.attack_paths import PATHS
from tests.campaigns.attack_place import COMMAND_LINES, COMMANDS, Place
from tests.campaigns.campaign import Case, full, run_campaign
from tests.campaigns.project import private_environment
from tslm.training.saved_settings import KNOWN

FORMS = ["zip", "zip", "zip", "legacy", "pickle", "torchscript", "compressed"]
GROUPS = ["", "trainer", "model", "data", "optimizer", "generation", "checkpoint", "config", "ckpt_path", "class_path",
          "model.optimizer", "model.generation", "data.tokenizer", "trainer.__path__", "trainer.config",
          "trainer.limit_train_batches.class_path", "trainer.callbacks.init_args", "unknown"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and return the exit code."""
    description = "Attack every command with files that try to run code, to write elsewhere, or to use up memory."
    families = [pickles, planted_files, settings, paths, libraries, bombs]
    return run_campaign("tests.campaigns.attack", families, description, arguments)


@full(124)
def pickles(case: Case) -> None:
    """Put a pickle that runs code anywhere into a checkpoint, of any form, and read it with any command."""
    with private_environment(case.folder):
        place = Place(case)
        payloads = shapes(place.canary)
        shape = list(payloads)[case.number % len(payloads)]
        key, form = case.rng.choice(PLACES), case.rng.choice(FORMS)
        case.note(shape=shape, key=key, form=form)
        state = torch.load(place.checkpoints / "last.ckpt", weights_only=True)
        data = planted_checkpoint(state, key, payloads[shape], form)
        command, options = read_by(case, place, data)
        outcome = place.attack(command, options)
        if case.inputs["wanted"].endswith("evil.ckpt"):
            assert outcome.code == 2, outcome.text[-2000:]


@full(62)
def planted_files(case: Case) -> None:
    """Put a pickle, or an array of objects, in place of every other file that a command reads."""
    with private_environment(case.folder):
        place = Place(case)
        payloads = shapes(place.canary)
        shape = list(payloads)[case.number % len(payloads)]
        data = b"\x80\x02" + payloads[shape] + b"."
        if case.rng.random() < 0.3:
            header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
            data = b"\x93NUMPY\x01\x00v\x00" + header + data
        tops = [place.project / name for name in ("c", "lightning_logs", "v", "old", "old.json")]
        files = sorted(path for top in tops for path in [top, *top.rglob("*")] if path.is_file())
        target = case.rng.choice(files)
        command = case.rng.choice(COMMAND_LINES)
        options = [*COMMANDS[command], f"--ckpt_path={case.rng.choice(['last', 'best'])}"]
        if target.parent.name == "v":
            command, options = case.rng.choice([
                ("tokenize", ["--tokenizer=v", "--input=s.txt", "--output=c/ids"]),
                ("validate", [*COMMANDS["validate"], "--ckpt_path=last", "--data.tokenizer=v"]),
                ("study", ["tokenizer", "--tokenizer=v", "--input=s.txt", "--num_workers=1"])])
        case.note(shape=shape, target=str(target.relative_to(place.project)), command=command)
        os.remove(target)  # and not the other names of a linked checkpoint
        target.write_bytes(data)
        place.attack(command, options)


@full(150)
def settings(case: Case) -> None:
    """Name code, files or folders in the settings that a checkpoint or a run directory holds."""
    with private_environment(case.folder):
        place = Place(case)
        rng, way = case.rng, case.rng.choice(["checkpoint"] * 4 + ["hyper_parameters", "run directory", "user's YAML"])
        key, value = rng.choice([*KNOWN, *KNOWN, *GROUPS]), evil_value(rng, place)
        case.note(way=way, key=key, value=value)
        if way == "user's YAML":
            text = yaml.dump(with_value({}, key.split("."), "PLACE"))
            (place.project / "evil.yaml").write_text(text.replace("PLACE", rng.choice(tags(place))))
            place.attack("fit", [*COMMANDS["fit"], "--config=evil.yaml", '--data.train_files=["s.txt"]'])
            return
        state: Any = torch.load(place.checkpoints / "last.ckpt", weights_only=True)
        if way == "run directory":
            for name in ("config.yaml", "hparams.yaml", "evil.yaml"):
                text = yaml.dump(with_value({}, key.split("."), "PLACE"))
                (place.run / name).write_text(text.replace("PLACE", rng.choice([*tags(place), str(value)])))
        elif way == "checkpoint":
            state = with_value(state, ["tslm", "config", *filter(None, key.split("."))], value)
        else:
            state = with_value(state, ["hyper_parameters", *filter(None, key.split("."))], value)
            state["hparams_name"] = "planted.Evil"
        data = place.tmp / "evil.ckpt"
        torch.save(state, data)
        place.attack(*read_by(case, place, data.read_bytes()))


@full(len(PATHS) * 3)
def paths(case: Case) -> None:
    """Use links, names with dots, absolute names and odd characters, so that a command writes elsewhere."""
    variant(case, PATHS)


@full(len(LIBRARIES) * 2)
def libraries(case: Case) -> None:
    """Plant a compiled library where the C kernels are kept."""
    variant(case, LIBRARIES)


@full(len(BOMBS) * 5)
def bombs(case: Case) -> None:
    """Claim or unpack to huge sizes, or nest deeply; memory and time stay bounded."""
    variant(case, BOMBS)


def variant(case: Case, variants: Sequence[Any]) -> None:
    """Run one of the attacks of a family: each of them in turn."""
    with private_environment(case.folder):
        attack = variants[case.number % len(variants)]
        case.note(attack=attack.__name__)
        attack(case, Place(case))


def read_by(case: Case, place: Place, data: bytes) -> tuple[str, list[str]]:
    """Write a checkpoint somewhere in the run, and return a command that reads it or finds it by itself."""
    rng = case.rng
    command = rng.choice(list(COMMANDS))
    name, wanted = rng.choice([
        ("evil.ckpt", "lightning_logs/version_0/checkpoints/evil.ckpt"), ("last.ckpt", "last"), ("best.ckpt", "best"),
        ("evil.ckpt", "lightning_logs/version_0/checkpoints/evil.ckpt"), ("step-00000009.ckpt", "last"),
        ("last.ckpt", "lightning_logs/version_0"), ("best.ckpt", "lightning_logs/version_0/checkpoints")])
    if command == "load_model":
        wanted = f"lightning_logs/version_0/checkpoints/{name}"
    path = place.checkpoints / name
    path.unlink(missing_ok=True)  # and not the other names of the file
    path.write_bytes(data)
    case.note(command=command, wanted=wanted)
    return command, [*COMMANDS[command], f"--ckpt_path={wanted}"]


def evil_value(rng: random.Random, place: Place) -> object:
    """Draw a value that names code, or a place to write to."""
    outside, planted = str(place.outside), "planted.Evil"
    shell = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(place.canary)]}}
    folder = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": outside}}
    return rng.choice([
        {"class_path": planted}, [{"class_path": planted}], planted, [planted], shell, [shell], folder, [folder],
        {"class_path": planted, "init_args": {"save_dir": outside}, "dict_kwargs": {"x": 1}}, {"dict_kwargs": shell},
        [{"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "planted.evil"}}],
        [{"class_path": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "init_args": {"dirpath": outside}}],
        {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {"dirpath": outside}},
        outside, f"{outside}/new", f"{outside}/evil.yaml", {"__path__": f"{outside}/evil.yaml"}, "../attacked/outside",
        {"config": f"{outside}/evil.yaml"}, "os.system", {"init_args": {}}, rng.choice(tags(place)), [outside],
        [f"{outside}/precious.txt"], f"{outside}/precious.txt", {"__class__": planted}, "file://" + outside,
        f"\x1b]0;{outside}\x07", "\0", "a\nb",
    ])


def tags(place: Place) -> list[str]:
    """Return YAML whose tags would run code in a loader that is not safe."""
    command = f"touch {place.canary}"
    return [
        f'!!python/object/apply:os.system ["{command}"]', "!!python/object:planted.Evil {}",
        "!!python/object/new:planted.Evil {}", "!!python/name:planted.Evil ''", "!!python/module:planted ''",
        f'!!python/object/apply:subprocess.Popen [["touch", "{place.canary}"]]', "!!python/tuple [1]",
        "!include evil.yaml", "!planted.Evil {}", "!!python/object/apply:planted.evil []",
    ]


if __name__ == "__main__":
    sys.exit(main())
