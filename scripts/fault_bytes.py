"""Damage to the bytes of a checkpoint: its headers, its tensors, its index, its links."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abliterate.model.index import DTYPES, INDEX

Damage = Callable[[Path, random.Random], None]
Header = list[tuple[str, Any]]  # pairs, so that a name can stand twice
DECOY = "decoy.safetensors"
DAMAGES: dict[str, Damage] = {}
ODD_VALUES = (None, True, -1, 0, 1, 7, 2**31, 2**62, 2**63, 10**30, 1.5, 1e400, "4", "", "\ud800", [], [[]], {}, [-1, 4], "F32")
ODD_NAMES = (
    "", "a\nb", "\ud800", "\0", "x" * 5000, "__metadata__", "model.layers.9.self_attn.o_proj.weight", "lm_head.weight",
    "model.layers.0.self_attn.o_proj.weight", "model.layers." + "9" * 5000 + ".mlp.down_proj.weight", "model.layers.٣.mlp.down_proj.weight",
    "model.layers.0.mlp.experts.0.down_proj.weight", "model.layers.0.mlp.down_proj.weight_blocks", "visual.merger.mlp.2.weight",
)  # fmt: skip
ODD_SHARDS = (
    "../../outside/" + DECOY, "../" + DECOY, "sub/" + DECOY, "/ABSOLUTE/" + DECOY, "..", ".", "", "x.bin", "missing.safetensors",
    "\0.safetensors",
    "a\nb.safetensors", "\ud800.safetensors", "x" * 300 + ".safetensors", "model-untied-head.safetensors", None, 7, [], {},
)  # fmt: skip


def damage(name: str) -> Callable[[Damage], Damage]:
    """Enter a function into the table of damages."""

    def enter(function: Damage) -> Damage:
        DAMAGES[name] = function
        return function

    return enter


def any_shard(model: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(model.glob("*.safetensors")))


def parts(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return list(json.loads(content[8 : 8 + length]).items()), content[8 + length :]


def put(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> None:
    pairs = header if isinstance(header, bytes) else b"{%s}" % b",".join(pair(name, value) for name, value in header)
    path.write_bytes((len(pairs) if length is None else length).to_bytes(8, "little") + pairs + data)


def pair(name: str, value: Any) -> bytes:
    return f"{json.dumps(name)}:{json.dumps(value)}".encode()


def tensors_of(header: Header) -> list[int]:
    """Places of the entries that are tensors."""
    return [i for i, (name, _) in enumerate(header) if name != "__metadata__"]


def _flip(content: bytes, rng: random.Random, start: int, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        changed[rng.randrange(start, end)] = rng.randrange(256)
    return bytes(changed)


@damage("bytes of a header")
def flip_header(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    content = path.read_bytes()
    path.write_bytes(_flip(content, rng, 0, 8 + int.from_bytes(content[:8], "little")))


@damage("bytes of tensors")
def flip_data(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    content = path.read_bytes()
    path.write_bytes(_flip(content, rng, 8 + int.from_bytes(content[:8], "little"), len(content)))


@damage("bytes of the index")
def flip_index(model: Path, rng: random.Random) -> None:
    content = (model / INDEX).read_bytes()
    (model / INDEX).write_bytes(_flip(content, rng, 0, len(content)))


@damage("truncated or lengthened file")
def cut(model: Path, rng: random.Random) -> None:
    path = rng.choice([*model.glob("*.safetensors"), model / INDEX])
    content = path.read_bytes()
    path.write_bytes(rng.choice((content[: rng.randrange(len(content))], content + b"\0" * rng.randrange(1, 100), b"")))


@damage("length of a header")
def header_length(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    put(path, header, data, rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 100_000_000, rng.randrange(10_000))))


@damage("odd value in a header")
def odd_entry(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    place = rng.choice(tensors_of(header))
    name, entry = header[place]
    key = rng.choice(("dtype", "shape", "data_offsets", "start", "end", "axis", "whole", "lost"))
    if key == "whole":
        entry = rng.choice(ODD_VALUES)
    elif key == "lost":
        entry.pop(rng.choice(sorted(entry)))
    elif key in ("start", "end"):
        moved = entry["data_offsets"][key == "end"] + rng.choice((-4, -2, -1, 1, 2, 4))
        entry["data_offsets"][key == "end"] = rng.choice((*ODD_VALUES, moved))
    elif key == "axis" and entry["shape"]:
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(ODD_VALUES)
    else:
        entry["dtype" if key == "axis" else key] = rng.choice((*ODD_VALUES, *DTYPES))
    header[place] = (name, entry)
    put(path, header, data)


@damage("another shape or type for the same bytes")
def reinterpret(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    for place in rng.sample(tensors_of(header), rng.randint(1, len(tensors_of(header)))):
        entry = header[place][1]
        start, end = entry["data_offsets"]
        dtype = rng.choice([d for d, (_, size) in DTYPES.items() if (end - start) % size == 0])
        count = (end - start) // DTYPES[dtype][1]
        rows = rng.choice([n for n in (1, 2, 16, 32, 64, *entry["shape"]) if n and count % n == 0])
        shape = rng.choice(([count], [rows, count // rows], [count // rows, rows], [1, rows, count // rows], [rows, 1, count // rows, 1]))
        entry.update(dtype=dtype, shape=[] if count == 1 and rng.random() < 0.5 else shape)
    put(path, header, data)


@damage("empty tensor")
def empty(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    place = rng.choice(tensors_of(header))
    start, end = header[place][1]["data_offsets"]
    header[place][1].update(
        shape=rng.choice(([0], [0, 32], [32, 0], [0, 2**62], [0, 2**62, 2**62], [0, 10**30])), data_offsets=[start, start]
    )
    for other in tensors_of(header):
        if other != place and header[other][1]["data_offsets"][0] >= end:
            header[other][1]["data_offsets"] = [n - (end - start) for n in header[other][1]["data_offsets"]]
    put(path, header, data[:start] + data[end:])


@damage("tensors that overlap or change places")
def overlap(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    one, other = (header[rng.choice(tensors_of(header))][1] for _ in range(2))
    if rng.random() < 0.5:
        one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
    else:
        one.update(other)
    put(path, header, data)


@damage("name lost, changed or twice")
def names(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    place = rng.choice(tensors_of(header))
    what = rng.choice(("lost", "changed", "twice", "both"))
    new = rng.choice(ODD_NAMES)
    if what == "lost":
        header.pop(place)
    elif what == "twice":
        header.append(rng.choice((header[place], (header[place][0], {"dtype": "F32", "shape": [0], "data_offsets": [len(data)] * 2}))))
    else:
        old, header[place] = header[place][0], (new, header[place][1])
        if what == "both":
            document = json.loads((model / INDEX).read_text())
            document["weight_map"][new] = document["weight_map"].pop(old, path.name)
            (model / INDEX).write_text(json.dumps(document))
    put(path, header, data)


@damage("tensor in two shards")
def two_shards(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    name = rng.choice(list(json.loads((model / INDEX).read_text())["weight_map"]))
    put(path, [*header, (name, {"dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4]})], data + b"1234")


@damage("odd metadata")
def metadata(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    odd = rng.choice((*ODD_VALUES, {"format": 7}, {"format": None}, {"a": {"b": []}}, {"format": "\ud800\n"}))
    put(path, [(name, value) for name, value in header if name != "__metadata__"] + [("__metadata__", odd)], data)
    document = json.loads((model / INDEX).read_text())
    (model / INDEX).write_text(json.dumps(document | {"metadata": rng.choice((*ODD_VALUES, {"total_size": "x"}))}))


@damage("nesting, text or constants that are not JSON")
def nested(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    deep = rng.choice((500, 5000, 100_000))
    small = (b"\xff\xfe", b'{"a": NaN}', b"null", b"[]", b"7", b'"x"', b"9" * 10_000, b'{"\xff": 1}')
    odd = rng.choice((b"[" * deep, b'{"a":' * deep, *small))
    if rng.random() < 0.5:
        (model / INDEX).write_bytes(rng.choice((odd, b'{"weight_map": %s}' % odd, b'{"metadata": %s, "weight_map": {}}' % odd)))
    else:
        name, entry = header.pop(rng.choice(tensors_of(header)))
        value = json.dumps(entry).encode()[:-1] + b', "more": ' + b"[" * deep + b"]" * deep + b"}"
        pairs = [pair(*entry) for entry in header] + [json.dumps(name).encode() + b":" + value]
        put(path, rng.choice((odd, b"{%s}" % b",".join(pairs))), data)


@damage("odd shard name in the index")
def shard_names(model: Path, rng: random.Random) -> None:
    document = json.loads((model / INDEX).read_text())
    shards: dict[str, Any] = document["weight_map"]
    odd, outside = rng.choice(ODD_SHARDS), model.parents[1] / "outside"
    if isinstance(odd, str):
        odd = odd.replace("/ABSOLUTE", str(outside))
    names = sorted(shards)
    for name in rng.choice((rng.sample(names, 1), names, ["more"])):
        shards[name] = odd
    if odd == "model-untied-head.safetensors":
        old = any_shard(model, rng)
        old.rename(model / odd)
        document["weight_map"] = {name: odd if shard == old.name else shard for name, shard in shards.items()}
    if rng.random() < 0.3:
        (model / "sub").mkdir()
        shutil.copy(outside / DECOY, model / "sub")
    (model / INDEX).write_text(json.dumps(document))


@damage("odd index")
def index(model: Path, rng: random.Random) -> None:
    document = json.loads((model / INDEX).read_text())
    shards = document["weight_map"]
    names, files = sorted(shards), sorted(set(shards.values()))
    what = rng.choice(("list", "odd", "empty", "lost", "moved", "twice", "gone"))
    if what == "gone":
        (model / INDEX).unlink()
        return
    if what in ("lost", "moved"):
        for name in rng.sample(names, rng.randint(1, 4)):
            shards.pop(name) if what == "lost" else shards.update({name: rng.choice(files)})
    elif what != "twice":
        document["weight_map"] = {"list": names, "odd": rng.choice(ODD_VALUES), "empty": {}}[what]
    text = json.dumps(document)
    if what == "twice":
        name = rng.choice(names)
        text = text.replace('"weight_map": {', f'"weight_map": {{"{name}": "{rng.choice(files)}", ')
    (model / INDEX).write_text(text)


@damage("link")
def link(model: Path, rng: random.Random) -> None:
    path = rng.choice([*sorted(model.glob("*.safetensors")), model / INDEX, model / "LICENSE", model / "new.txt"])
    outside = model.parents[1] / "outside"
    inside = model / "inside.dat"
    place = rng.choice((outside / "moved", inside, outside / "lost", Path("/proc/self/environ"), Path("/dev/zero"), outside, path))
    if path.exists() and place in (outside / "moved", inside):
        path.rename(place)
    path.unlink(missing_ok=True)
    relative = place.is_relative_to(model.parents[1]) and rng.random() < 0.5
    path.symlink_to(os.path.relpath(place, path.parent) if relative else place)


@damage("NaN, infinity or huge values in a tensor")
def not_finite(model: Path, rng: random.Random) -> None:
    path = any_shard(model, rng)
    header, data = parts(path)
    start, end = header[rng.choice(tensors_of(header))][1]["data_offsets"]
    value = bytes.fromhex(rng.choice(("0000c07f", "c07fc07f", "0000807f", "807f80ff", "7f7f7f7f", "ffffffff")))
    at = rng.randrange(start, end, 4) if end - start > 4 else start
    many = value * ((end - at) // 4 if rng.random() < 0.3 else 1)
    put(path, header, (data[:at] + many + data[at + len(many) :])[: len(data)])
