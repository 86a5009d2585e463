"""Small files that claim or unpack to huge sizes, or nest deeply: memory and time stay bounded."""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from typing import Any

import torch

from tests.campaigns.attack_inputs import planted_checkpoint, text, with_value
from tests.campaigns.attack_paths import change, small, write
from tests.campaigns.attack_place import COMMAND_LINES, COMMANDS, Place
from tests.campaigns.campaign import Case

GIGABYTE = 1 << 30
SECONDS = 90  # a command takes about two alone
DEEP = "[" * 100_000
HUGE = [10**400, 10**18, 2**63 - 1, 2**40, -1, -(10**400), 0, 1e300, 1e400]


def use(case: Case, place: Place, *options: str, commands: tuple[str, ...] = COMMAND_LINES) -> None:
    """Run a command on the newest run, with little memory and time."""
    command = case.rng.choice(commands)
    wanted = case.rng.choice(["last", "best", "lightning_logs/version_0",
                              "lightning_logs/version_0/checkpoints/last.ckpt"])
    case.note(command=command, wanted=wanted)
    run(place, command, [*COMMANDS[command], f"--ckpt_path={wanted}", *options])


def run(place: Place, command: str, options: list[str]) -> None:
    """Run a command, and raise AssertionError if it takes much more memory or time than an honest file needs."""
    outcome = place.attack(command, options, limit=SECONDS, memory=4 * GIGABYTE)
    assert outcome.peak < 2 * GIGABYTE, f"{outcome.peak:,} bytes of memory: {outcome.text[-1000:]!a}"


def unpacking_checkpoint(case: Case, place: Place) -> None:
    """A record of a checkpoint, or all, are compressed zeros: two megabytes become two gigabytes."""
    path = case.folder / "zeros.zip"
    if not path.exists():
        path.write_bytes(compressed_zeros("last/data/0", 2 * GIGABYTE))
    name = case.rng.choice(["last/data/0", "last/data.pkl", "last/extra_"])
    if name == "last/data.pkl":
        data = compressed_zeros(name, GIGABYTE)
    else:  # a name of the same length can be replaced in the archive
        data = path.read_bytes().replace(b"last/data/0", name.encode())
    with zipfile.ZipFile(place.checkpoints / "last.ckpt") as old:
        records = {each: old.read(each) for each in old.namelist() if each != name}
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as new:
        for each, content in records.items():
            new.writestr(each, content)
    write(place, buffer.getvalue())
    use(case, place)


def overlapping_records(case: Case, place: Place) -> None:
    """A hundred thousand records share the same megabyte."""
    buffer = io.BytesIO((place.checkpoints / "last.ckpt").read_bytes())
    with zipfile.ZipFile(buffer, "a") as new:
        new.writestr("last/data/999", b"\0" * (1 << 20))
        info = new.getinfo("last/data/999")
        new.filelist.extend([info] * 100_000)
        new._didModify = True  # type: ignore[attr-defined]
    write(place, buffer.getvalue())
    use(case, place)


def claimed_record(case: Case, place: Place) -> None:
    """The directory of a checkpoint claims that a record has terabytes."""
    with zipfile.ZipFile(place.checkpoints / "last.ckpt") as old:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as new:
            for each in old.namelist():
                new.writestr(each, old.read(each))
            info = new.getinfo(case.rng.choice(new.namelist()))
            info.file_size = info.compress_size = case.rng.choice([2**42, 2**62, 2**31])
            if case.rng.random() < 0.5:
                info.compress_size = 10
    write(place, buffer.getvalue())
    use(case, place)


def claimed_storage(case: Case, place: Place) -> None:
    """A storage claims more numbers than its record has, or a tensor more than its storage."""
    numel, size = case.rng.choice([(1 << 30, 1 << 30), (16, 1 << 30), (1 << 30, 16), (2**31 - 1, 4), (-1, 4)])
    stride = case.rng.choice([0, 1, 1 << 20])
    opcodes = (b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") +
               text("cpu") + b"J" + struct.pack("<i", numel) + b"tQK\x00J" + struct.pack("<i", size) + b"\x85J" +
               struct.pack("<i", stride) + b"\x85\x89ccollections\nOrderedDict\n)RtR")
    case.note(numel=numel, size=size, stride=stride)
    nest(case, place, opcodes)


def pickles_that_grow(case: Case, place: Place) -> None:
    """Lists in lists, a list that doubles thirty times, a huge bytearray, a tensor without memory."""
    growing = b"]" + b"q\x60" + b"".join(b"]h\x60ah\x60aq\x60" for _ in range(30))
    opcodes = case.rng.choice([
        b"]" * 100_000 + b"a" * 99_999, growing, b"(" * 50_000 + b"t" * 50_000,
        b"cbuiltins\nbytearray\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R",
        b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R", b"X\xff\xff\xff\x7f", b"\x8a\xff" + b"\xff" * 255,
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\nJ\x00\x00\x00\x7f\x85K\x01\x85\x89tR",
        b"ctorch\nSize\n(J\x00\x00\x00\x7fJ\x00\x00\x00\x7ft\x85R", b"ctorch\nTensor\nJ\x00\x00\x00\x7f\x85R",
        b"ctorch.nn.parameter\nBuffer\n)R", b"J\x00\x00\x00\x7f" * 100_000 + b"0" * 99_999])
    nest(case, place, opcodes)


def huge_architecture(case: Case, place: Place) -> None:
    """The architecture asks for terabytes, or for millions of layers."""
    size = case.rng.choice([2**24, 2**16, 2**20])
    key = case.rng.choice(["d_model", "num_layers", "d_ff", "vocab_size", "context_length", "num_heads"])
    sizes = {key: size} | ({"d_model": 2 * size} if key == "num_heads" else {})
    case.note(sizes=sizes)
    change(place, "tslm.architecture", sizes, merge=True)
    use(case, place)


def huge_architecture_with_weights(case: Case, place: Place) -> None:
    """The weights have the huge shapes of the architecture, but share one number, or have no memory at all."""
    state: Any = torch.load(place.checkpoints / "last.ckpt", weights_only=True)
    size, device = case.rng.choice([2**20, 2**15]), case.rng.choice(["cpu", "meta"])
    sizes = state["tslm"]["architecture"] | {"d_ff": size, "d_model": size // 8}
    old, weights = state["tslm"]["architecture"], {}
    for name, weight in state["state_dict"].items():
        shape = [{old["d_ff"]: sizes["d_ff"], old["d_model"]: sizes["d_model"]}.get(n, n) for n in weight.shape]
        weights[name] = torch.zeros(1).expand(shape) if device == "cpu" else torch.empty(shape, device=device)
    buffer = io.BytesIO()
    torch.save(with_value(state | {"state_dict": weights}, ["tslm", "architecture"], sizes), buffer)
    write(place, buffer.getvalue())
    use(case, place)


def huge_settings(case: Case, place: Place) -> None:
    """A setting of the checkpoint is as large as its check allows."""
    key, value = case.rng.choice([
        ("data.batch_size", 2**62), ("data.micro_batch_size", 2**62), ("data.num_workers", 1024),
        ("data.toy_stories", 2**62), ("generation.top_k", 2**62), ("model.loss_chunk_size", 2**62),
        ("trainer.accumulate_grad_batches", 2**62), ("trainer.devices", 64), ("trainer.num_nodes", 65_536),
        ("data.prompts", ["x" * 100_000] * 3), ("data.special_tokens", ["x" * 100_000, "y"]), ("data.seed", 2**63 - 1),
        ("trainer.limit_val_batches", 2**62), ("optimizer.lr", 1e308), ("optimizer.cosine_steps", 2**62),
        ("data.special_tokens", [f"{n}" for n in range(50_000)]), ("trainer.log_every_n_steps", 2**62)])
    change(place, f"tslm.config.{key}", value)
    if key == "data.toy_stories":
        change(place, "tslm.config.data.corpus", "toy")
        change(place, "tslm.config.data.train_files", None)
    case.note(key=key)
    use(case, place)


def sidecar(case: Case, place: Place) -> None:
    """The sidecar of a token file claims other sizes, with its own hash right."""
    key, value = case.rng.choice(["count", "source_bytes", "vocab_size", "mtime_ns"]), case.rng.choice(HUGE)
    case.note(key=key, value=value)
    for path in (place.project / "c" / "tokens").glob("*.json"):
        fields = json.loads(path.read_text()) | {key: value}
        del fields["sidecar_sha256"]
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest() if abs(value) < 1e99 else ""
        path.write_text(json.dumps(fields | {"sidecar_sha256": digest}))
    use(case, place, commands=("fit", "validate"))


def deep_files(case: Case, place: Place) -> None:
    """A JSON or YAML file nests a hundred thousand times, or holds a number of a million digits."""
    content = case.rng.choice([DEEP, '{"a":' * 100_000, "9" * 1_000_000, '{"finished": ' + DEEP, "1e999999999", "NaN",
                               '{"a": ' + "9" * 100_000 + "}"])
    paths = [place.run / "summary.json", place.run / "config.yaml", place.project / "c" / "hashes.json",
             *(place.project / "c" / "tokens").glob("*.json"), *(place.project / "c" / "tokenizers").glob("*/*.json")]
    path = case.rng.choice(paths)
    case.note(path=str(path.relative_to(place.project)), content=content[:20])
    path.write_text(content)
    use(case, place, commands=("fit", "validate", "predict"))


def vocabulary(case: Case, place: Place) -> None:
    """A vocabulary has huge ids, nests, or has a token of megabytes; the tokenizer is a folder or in the checkpoint."""
    vocab = json.loads((place.project / "v" / "vocab.json").read_text())
    content = case.rng.choice([
        json.dumps(vocab | {"zz": number}) for number in (4_294_967_294, 10**9, 10**18, 10**400, -1, 1e300)
    ] + [json.dumps(vocab | {"z" * 5_000_000: 300}), DEEP, '{"a": ' + "9" * 100_000 + "}", json.dumps(vocab)[:-2]])
    merges = (place.project / "v" / "merges.txt").read_text()
    if case.rng.random() < 0.3:
        content = json.dumps(vocab)
        merges += case.rng.choice(["Ġ Ġ\n" * 1_000_000, "x" * 10_000_000, "Ġ " * 1_000_000])
    if case.rng.random() < 0.5:
        change(place, "tslm.tokenizer", {"vocab.json": content, "merges.txt": merges, "tokenizer_config.json": "{}"})
        use(case, place)
        return
    added = {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}
    (place.project / "v" / "tokenizer_config.json").write_text(case.rng.choice(["{}", DEEP, json.dumps(added)]))
    (place.project / "v" / "vocab.json").write_text(content)
    (place.project / "v" / "merges.txt").write_text(merges)
    run(place, *case.rng.choice([
        ("tokenize", ["--tokenizer=v", "--input=s.txt", "--output=c/ids", "--num_workers=1"]),
        ("fit", [*COMMANDS["fit"], *small(), '--data.train_files=["s.txt"]', "--data.tokenizer=v"]),
        ("study", ["tokenizer", "--tokenizer=v", "--input=s.txt", "--num_workers=1"])]))


def laughing_yaml(case: Case, place: Place) -> None:
    """A configuration grows by aliases, contains itself, or nests."""
    form = case.rng.choice(["list", "mapping", "itself", "deep", "merge"])
    case.note(form=form)
    if form == "itself":
        content = case.rng.choice(["&a [*a]", "trainer: &a {callbacks: *a}", "data: &a {prompts: [*a]}"])
    elif form == "deep":
        content = case.rng.choice([DEEP, "data: " + DEEP, "{a: " * 20_000, "- " * 20_000])
    else:
        lines = ["l0: &l0 " + ("[lol]" if form == "list" else "{lol: 1}")]
        for n in range(1, 30):
            each = f"*l{n - 1}"
            if form == "list":
                lines.append(f"l{n}: &l{n} [{', '.join([each] * 9)}]")
            elif form == "mapping":
                lines.append(f"l{n}: &l{n} {{{', '.join(f'k{m}: {each}' for m in range(9))}}}")
            else:
                lines.append(f"l{n}: &l{n} {{<<: [{', '.join([each] * 9)}], k{n}: 1}}")
        top = case.rng.choice(["", "data:\n  prompts: *l29\n", "trainer:\n  callbacks: *l29\n", "model: *l29\n"])
        values = [line.partition(" ")[2] for line in lines]
        content = case.rng.choice(["\n".join(lines) + "\n" + top, f"[{', '.join(values)}]"])
    (place.project / "evil.yaml").write_text(content)
    (place.run / "config.yaml").write_text(content)
    if case.rng.random() < 0.3:
        use(case, place)
    else:
        command = case.rng.choice(["fit", "validate", "predict"])
        run(place, command, [*COMMANDS[command], "--config=evil.yaml"])


def nest(case: Case, place: Place, opcodes: bytes) -> None:
    """Put opcodes somewhere into the checkpoint."""
    state = torch.load(place.checkpoints / "last.ckpt", weights_only=True)
    key = case.rng.choice(["state_dict.model.lm_head.weight", "unknown", "tslm.config.trainer.max_steps", "callbacks.x",
                           "tslm.config.data.prompts", "loops.fit_loop.state_dict.x", "tslm.rng.cpu", "global_step",
                           "tslm.tokenizer", "optimizer_states", "tslm.architecture"])
    case.note(key=key)
    write(place, planted_checkpoint(state, key, opcodes, "zip"))
    use(case, place)


def compressed_zeros(name: str, size: int) -> bytes:
    """Return an archive with one record of zeros, made of the same compressed megabytes again and again."""
    step = 1 << 24
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first, again = (packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    crc = 0
    for _ in range(size // step):
        crc = zlib.crc32(bytes(step), crc)
    data = first + again * (size // step - 1) + packer.flush()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"")
        archive.fp.truncate(0)  # type: ignore[union-attr]
        archive.fp.seek(0)  # type: ignore[union-attr]
        info = archive.getinfo(name)
        info.compress_type, info.CRC, info.file_size, info.compress_size = zipfile.ZIP_DEFLATED, crc, size, len(data)
        archive.fp.write(info.FileHeader(zip64=False) + data)  # type: ignore[union-attr]
        archive.start_dir = archive.fp.tell()  # type: ignore[union-attr]
    return buffer.getvalue()


BOMBS = [unpacking_checkpoint, overlapping_records, claimed_record, claimed_storage, pickles_that_grow,
         huge_architecture, huge_architecture_with_weights, huge_settings, sidecar, deep_files, vocabulary,
         laughing_yaml]
