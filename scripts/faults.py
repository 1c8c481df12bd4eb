"""Two trials of the promise that an edited checkpoint is whole under its name or not there, and its source never touched.

``kills`` forks an edit of a small sharded checkpoint again and again and kills each at a random instant. ``fuzz`` damages small
checkpoints in every way that a stranger's file can be damaged: an edit then either ends well, with a checkpoint that verifies
against the damaged base, or is refused with one line; never another exception, never a file where none belongs.

Run by ``scripts/faults``; a part of both is in the test suite.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.verify import verify
from abliterate.errors import CheckError, InputError
from abliterate.formats import fp8
from abliterate.model.folder import open_folder
from abliterate.model.index import DTYPES, INDEX
from abliterate.model.plan import plan_from_direction

Say = Callable[[str], None]
Header = list[tuple[str, Any]]  # pairs, so that a name can stand twice
SMALL = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 48, "max_position_embeddings": 64}
DECOY = "decoy.safetensors"


class BrokenPromiseError(AssertionError):
    """What must never happen has happened."""


@dataclass
class Tally:
    """How the tries of a trial ended, and what went wrong."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


# --- the checkpoints ---


def save_base(folder: Path, config: Any, shards: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A random sharded checkpoint with a side file."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(dtype).save_pretrained(folder, max_shard_size=shards)
    (folder / "LICENSE").write_text("none\n")
    return folder


def llama(folder: Path) -> Path:
    """Untied, with biases on the writers."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3} | SMALL
    return save_base(folder, LlamaConfig(**sizes, attention_bias=True, mlp_bias=True, tie_word_embeddings=False), "20KB")


def qwen2(folder: Path) -> Path:
    """Tied, in float32."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2} | SMALL
    return save_base(folder, Qwen2Config(**sizes, tie_word_embeddings=True), "40KB", torch.float32)


def gemma2(folder: Path) -> Path:
    """With norms between the writers and the stream."""
    return save_base(folder, Gemma2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, **SMALL), "20KB")


def qwen3_fp8(folder: Path) -> Path:
    """With matrices in block-scaled FP8."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2} | SMALL
    save_base(folder, Qwen3Config(**sizes, tie_word_embeddings=False), "20KB")

    def quantised(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if not name.endswith("_proj.weight"):
            return {name: tensor}
        weight, scales = fp8.requantise(tensor.float(), torch.randn(1, tensor.shape[0]), (16, 16))
        return {name: weight, f"{name}_scale_inv": scales}

    return _rewritten(folder, quantised, {"quant_method": "fp8", "weight_block_size": [16, 16]})


def gpt_oss(folder: Path) -> Path:
    """With experts in MXFP4."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_local_experts": 2, "num_experts_per_tok": 1} | SMALL
    save_base(folder, GptOssConfig(**sizes), "60KB")

    def packed(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if tensor.ndim != 3:
            return {name: tensor}
        experts, inputs, outputs = tensor.shape
        blocks = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        return {f"{name}_blocks": blocks, f"{name}_scales": torch.randint(118, 124, blocks.shape[:3], dtype=torch.uint8)}

    return _rewritten(folder, packed, {"quant_method": "mxfp4"})


def _rewritten(folder: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], settings: dict[str, Any]) -> Path:
    """Every tensor through ``change``, and what the config then says of the weights."""
    shard_of = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {new: t.contiguous() for name, tensor in load_file(path).items() for new, t in change(name, tensor).items()}
        save_file(tensors, path, {"format": "pt"})
        shard_of |= dict.fromkeys(tensors, path.name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


BASES: dict[str, Callable[[Path], Path]] = {"llama": llama, "qwen2": qwen2, "gemma2": gemma2, "qwen3-fp8": qwen3_fp8, "gpt-oss": gpt_oss}


def edit(model: Path, out: Path, **options: Any) -> None:
    """An edit along one random direction."""
    folder = open_folder(model)
    r = torch.randn(folder.d_model, generator=torch.Generator().manual_seed(1))
    plan = plan_from_direction(r, folder.layers, tied=folder.tied, **options)
    edit_checkpoint(folder, plan, out, "base", lambda proof: "card\n")


@contextmanager
def own_cache(place: Path) -> Iterator[None]:
    """Self-checks are kept in ``place``, not in the user's cache."""
    before = os.environ.get("ABLITERATE_CACHE")
    os.environ["ABLITERATE_CACHE"] = str(place)
    try:
        yield
    finally:
        os.environ.pop("ABLITERATE_CACHE")
        if before is not None:
            os.environ["ABLITERATE_CACHE"] = before


def contents(place: Path) -> dict[str, str]:
    """Every file below ``place`` with its hash; links with where they point, folders as such."""
    found = {}
    for path in sorted(place.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(place))] = f"-> {path.readlink()}"
        else:
            found[str(path.relative_to(place))] = blake3(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


# --- kills ---


def kills(n: int, seed: int, place: Path, say: Say = print) -> Tally:
    """Kill ``n`` edits, each at an instant drawn from 0 to 1.2 times what one takes."""
    rng, tally = random.Random(seed), Tally()
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 6} | SMALL
    (place / "kills").mkdir(parents=True)
    with own_cache(place / "cache"):
        model = save_base(place / "kills" / "model", LlamaConfig(**sizes, tie_word_embeddings=False), "2MB")
        out, before = place / "kills" / "out", contents(model)
        _whole_edit(model, out)
        _check_whole(model, out)
        took = statistics.median(_whole_edit(model, out) for _ in range(7))
        say(f"an edit takes {took * 1000:.0f} ms; {n} kills")
        shutil.rmtree(out)
        stale: set[Path] = set()
        for number in range(n):
            try:
                how = _killed(model, out, rng.uniform(0, 1.2 * took))
                left = set(out.parent.glob(".out.partial-*"))
                tally.counts["kill", how] += 1
                tally.counts["stale folder", "left"] += len(left - stale)
                stale |= left
                _require(len(left) <= 1, f"{len(left)} stale folders lie beside the checkpoint")
                _require(contents(model) == before, "the source changed")
            except BrokenPromiseError as error:
                tally.broken.append(f"kill {number}: {error}")
        _whole_edit(model, out)
        _check_whole(model, out)
        shutil.rmtree(out)
        if left := [path for path in out.parent.iterdir() if path != model]:
            tally.broken.append(f"the last run did not sweep {left[0].name}")
        tally.counts["stale folder", "swept by a later run"] = len(stale) - sum(path.exists() for path in stale)
    return tally


def _whole_edit(model: Path, out: Path) -> float:
    """Seconds of an edit that is let be; its checkpoint stays until the next call."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.monotonic()
    _, status = os.waitpid(_forked(model, out), 0)
    took = time.monotonic() - started
    if status:
        raise SystemExit("an edit that nobody killed failed")
    return took


def _killed(model: Path, out: Path, after: float) -> str:
    """Start an edit, kill it, and look at what stands under its name."""
    child = _forked(model, out)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    _require(os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the edit failed by itself")
    if not out.exists():
        _require(os.WIFSIGNALED(status), "the edit ended well, but nothing stands under its name")
        return "nothing under the name"
    _check_whole(model, out)
    shutil.rmtree(out)
    return "whole, killed after it got its name" if os.WIFSIGNALED(status) else "whole, had ended before the kill"


def _forked(model: Path, out: Path) -> int:
    """The process id of a child that edits and ends."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)  # the parent's threads did not come along
        edit(model, out)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _check_whole(model: Path, out: Path) -> None:
    try:
        verify(open_folder(out), open_folder(model))
    except (InputError, CheckError) as error:
        raise BrokenPromiseError(f"what stands under the name does not verify: {error}") from None


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenPromiseError(otherwise)


# --- fuzz ---

Damage = Callable[[Path, random.Random], None]
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


def fuzz(n: int, seed: int, place: Path, say: Say = print, only: int | None = None) -> Tally:
    """``n`` damaged checkpoints; ``only`` takes the one of that number."""
    tally = Tally()
    with own_cache(place / "cache"):
        bases = {name: make(place / "bases" / name) for name, make in BASES.items()}
        for name, base in bases.items():  # the self-checks, once
            edit(base, place / "first" / name)
        for number in range(n) if only is None else (only,):
            rng = random.Random(f"{seed}:{number}")
            kind = rng.choice(list(DAMAGES))
            try:
                tally.counts[kind, _fuzzed(bases, kind, rng, place / "case")] += 1
            except BrokenPromiseError as error:
                tally.counts[kind, "BROKEN"] += 1
                tally.broken.append(f"case {number} ({kind}): {error}")
            if number % 500 == 499:
                say(f"{number + 1} of {n}")
    return tally


def _fuzzed(bases: dict[str, Path], kind: str, rng: random.Random, case: Path) -> str:
    """One damaged checkpoint: how its edit ended. Raises BrokenPromiseError."""
    shutil.rmtree(case, ignore_errors=True)
    family = rng.choice(["llama", "llama", *bases])
    model, out = case / "models" / family, case / "out"
    shutil.copytree(bases[family], model)
    (case / "outside").mkdir()
    shutil.copy(min(model.glob("*.safetensors")), case / "outside" / DECOY)
    DAMAGES[kind](model, rng)
    options = rng.choice(({}, {"policy": "skip"}, {"policy": "untie"}, {"strength": 0.5}, {"keep_norms": True}))
    before = contents(case)
    try:
        edit(model, out, **options)
    except (InputError, CheckError) as error:
        _require(len(str(error).splitlines()) == 1, f"{family}: a message of several lines: {str(error)!r}")
        _require(len(str(error)) < 1000, f"{family}: a message of {len(str(error))} characters")
        _require(contents(case) == before, f"{family}: refused ({error}), but files changed: {_difference(before, contents(case))}")
        return "refused" if isinstance(error, InputError) else "failed its check"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        raise BrokenPromiseError(f"{family}: {type(error).__name__}: {str(error)[:200]} ({where})") from None
    after = contents(case)
    elsewhere = {name: hashed for name, hashed in after.items() if name != "out" and not name.startswith("out/")}
    _require(elsewhere == before, f"{family}: edited, but other files changed: {_difference(before, elsewhere)}")
    try:
        verify(open_folder(out), open_folder(model))
    except Exception as error:
        raise BrokenPromiseError(f"{family}: edited {options}, but verify: {type(error).__name__}: {str(error)[:200]}") from None
    return "edited and verified"


def _difference(before: dict[str, str], after: dict[str, str]) -> str:
    return ", ".join(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))[:5])


def show(tally: Tally) -> int:
    """Print the counts and what broke; the exit code."""
    for kind in sorted({kind for kind, _ in tally.counts}):
        ends = ", ".join(f"{count} {end}" for (k, end), count in sorted(tally.counts.items()) if k == kind)
        print(f"{kind}: {ends}")
    totals: Counter[str] = Counter()
    for (_, end), count in tally.counts.items():
        totals[end] += count
    print("all: " + ", ".join(f"{count} {end}" for end, count in sorted(totals.items())))
    for line in tally.broken[:50]:
        print(f"BROKEN: {line}")
    print(f"{len(tally.broken)} promises broken")
    return 1 if tally.broken else 0


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    trials = parser.add_subparsers(dest="trial", required=True)
    for name, n, text in (("kills", 1000, "kill edits at random instants"), ("fuzz", 10_000, "edit damaged checkpoints")):
        trial = trials.add_parser(name, help=text)
        trial.add_argument("--n", type=int, default=n, help="how many (default %(default)s)")
        trial.add_argument("--seed", type=int, default=0)
        if name == "fuzz":
            trial.add_argument("--only", type=int, metavar="CASE", help="the case of this number alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="abliterate-faults-") as place:
        if args.trial == "kills":
            return show(kills(args.n, args.seed, Path(place)))
        return show(fuzz(args.n, args.seed, Path(place), only=args.only))


if __name__ == "__main__":
    sys.exit(main())
