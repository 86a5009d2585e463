"""Files that would run code, if a program loaded them by `pickle`: shapes of pickles, and archives around them."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

MARK = "@@the payload is here@@"
# Dotted keys of a checkpoint of `fit`; "" is the whole file.
PLACES = [
    "", "state_dict", "state_dict.model.lm_head.weight", "optimizer_states", "lr_schedulers", "loops",
    "loops.fit_loop", "callbacks", "callbacks.Checkpoints.folder", "hyper_parameters", "epoch", "global_step",
    "pytorch-lightning_version", "tslm", "tslm.architecture", "tslm.config", "tslm.config.trainer.callbacks",
    "tslm.config.optimizer.lr", "tslm.left_out", "tslm.rng.cpu", "tslm.rng.cuda", "tslm.tokenizer",
    "tslm.fingerprints", "unknown",
]


def text(value: str) -> bytes:
    """Return the opcode that pushes a string (BINUNICODE)."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def short(value: str) -> bytes:
    """Return the opcode that pushes a short string (SHORT_BINUNICODE)."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def shapes(canary: Path) -> dict[str, bytes]:
    """Return opcodes that push an object and, on the way, write a file: by all means that pickle has to call code.

    Args:
        canary: the file.
    """
    command = text(f"touch '{canary}'")
    python = text(f"open({str(canary)!r}, 'w')")
    system, planted = b"cposix\nsystem\n", b"cplanted\nEvil\n"
    words = b"(" + text("touch") + text(str(canary)) + b"l"
    return {
        "REDUCE of a GLOBAL": system + command + b"\x85R",
        "REDUCE of a STACK_GLOBAL": short("posix") + short("system") + b"\x93" + command + b"\x85R",
        "os.system": b"cos\nsystem\n" + command + b"\x85R",
        "INST": b"(" + command + b"iposix\nsystem\n",
        "OBJ": b"(" + system + command + b"o",
        "NEWOBJ": planted + b")\x81",
        "NEWOBJ_EX": planted + b")}\x92",
        "BUILD with __setstate__": planted + b")\x81}b",
        "an import alone": planted,
        "an import of a submodule": b"cplanted.inner\nEvil\n",
        "EXT1": b"\x82\xf0" + command + b"\x85R",
        "EXT4": b"\x84" + struct.pack("<I", 240) + command + b"\x85R",
        "BINPERSID": b"(" + system + command + b"\x85R" + b"tQ",
        "BINPERSID of a storage elsewhere": b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(
            f"../../../..{canary}") + text("cpu") + b"K\x04tQ",
        "PERSID": b"P" + b"../canary\n",
        "eval": b"cbuiltins\neval\n" + python + b"\x85R",
        "exec": b"cbuiltins\nexec\n" + python + b"\x85R",
        "getattr": b"cbuiltins\ngetattr\n(" + b"cos\npath\n" + text("os") + b"tR0" + system + command + b"\x85R",
        "subprocess": b"csubprocess\nPopen\n" + words + b"\x85R",
        "runpy": b"crunpy\nrun_path\n" + text(str(canary.with_name("planted.py"))) + b"\x85R",
        "importlib": b"cimportlib\nimport_module\n" + text("planted") + b"\x85R",
        "torch.load": b"ctorch\nload\n" + text(str(canary.with_name("evil.pickle"))) + b"\x85R",
        "numpy.load": b"cnumpy\nload\n(" + text(str(canary.with_name("evil.npy"))) + b"N\x88tR",
        "a hub": b"ctorch.hub\nload\n(" + text(str(canary.parent)) + text("evil") + b"tR",
        "a callback": b"clightning.pytorch.callbacks\nLambdaCallback\n(" + system + b"tR",
        "our own class": b"ctslm.data.cache\nCache\n" + text(str(canary)) + b"\x85R",
        "a dictionary with __dict__": b"ccollections\nOrderedDict\n)R}" + text("__class__") + planted + b"sb",
        "a tensor with __dict__": b"ctorch\nSize\n(K\x01K\x02t\x85R}" + text("x") + system + b"sb",
        "a dtype that calls": b"ctorch._utils\n_rebuild_tensor_v2\n(" + system + b"K\x00)))" + b"NtR",
        "Parameter of a call": b"ctorch._utils\n_rebuild_parameter\n(" + system + command + b"\x85R\x88NtR",
        "_codecs.encode of a call": b"c_codecs\nencode\n(" + system + command + b"\x85R" + text("latin1") + b"tR",
    }


def planted_checkpoint(state: dict[str, Any], place: str, opcodes: bytes, form: str) -> bytes:
    """Return a checkpoint file with a payload at a dotted key.

    Args:
        state: the checkpoint; not changed.
        place: the key; it is added if it is absent.
        opcodes: what to push there.
        form: `zip`, torch's form; `legacy`, its form before 1.6; `pickle`; `torchscript`; `compressed`.
    """
    new: Any = with_value(state, place.split("."), MARK) if place else MARK
    if form == "pickle":
        return b"\x80\x02" + opcodes + b"."
    buffer = io.BytesIO()
    torch.save(new, buffer, _use_new_zipfile_serialization=form != "legacy")
    mark = text(MARK)
    if form == "legacy":
        assert mark in buffer.getvalue()
        return buffer.getvalue().replace(mark, opcodes)
    output = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(
        output, "w", zipfile.ZIP_DEFLATED if form == "compressed" else zipfile.ZIP_STORED
    ) as archive:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("/data.pkl"):
                assert mark in data
                data = data.replace(mark, opcodes)
                if form == "torchscript":
                    archive.writestr(name.replace("data.pkl", "constants.pkl"), b"\x80\x02" + opcodes + b".")
                    archive.writestr(name.replace("data.pkl", "code/__torch__.py"), "import planted\n")
            archive.writestr(name, data)
    return output.getvalue()


def with_value(values: Any, keys: list[str], value: Any) -> Any:
    """Return nested dictionaries with another value at a path of keys; keys may contain dots."""
    if not keys:
        return value
    values = dict(values) if isinstance(values, dict) else {}
    key = next((".".join(keys[:n]) for n in range(len(keys), 0, -1) if ".".join(keys[:n]) in values), keys[0])
    return values | {key: with_value(values.get(key), keys[key.count(".") + 1 :], value)}
