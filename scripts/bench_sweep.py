"""Collecting on a model that is larger than memory, beside what can't be avoided: reading its bytes, and its matrix products.

A random checkpoint of Qwen2's shape is made, and ``abliterate collect`` runs on 16 + 16 of the project's own prompts inside a
memory limit of the kernel's (a control group, where one can be made; else ``--max-memory`` alone). The bytes are read and the
matrix products of the same tokens done in turn with it, each in a process of its own, after the files have been dropped from the
page cache.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUFFER = 1 << 24
SHARE = 0.9  # of the limit is told to the program
NOISE = 1 << 26  # random numbers that the weights repeat
# Width, inner width, blocks, heads, heads of keys and values, tokens known.
SHAPES = {
    "15": (3584, 18944, 28, 28, 4, 152064),  # Qwen2.5-7B
    "4": (2048, 11008, 22, 16, 2, 49152),
    "0.3": (1024, 2816, 8, 16, 2, 49152),
}


@dataclass
class Figures:
    """Seconds of each turn, bytes at most, and what the program said of itself."""

    gigabytes: float
    limit_gib: float
    limited_by: str
    tokens: int = 0
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"collect": [], "read": [], "products": []})
    peak_bytes: list[int] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Of the program's time to the larger of the two that can't be avoided."""
        return median(self.seconds["collect"]) / max(median(self.seconds["read"]), median(self.seconds["products"]))


def write_checkpoint(folder: Path, shape: tuple[int, ...]) -> int:
    """A random bf16 checkpoint of Qwen2's shape with SmolLM2's tokenizer, four blocks a shard. Returns its bytes."""
    import torch
    from safetensors.torch import save_file

    from abliterate.model.fixtures.refuser import smollm2

    width, inner, blocks, heads, kv_heads, vocabulary = shape
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": blocks, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False,
        "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for file in smollm2().iterdir():
        if re.search(r"token|template|vocab|merges", file.name):
            (folder / file.name).write_bytes(file.read_bytes())
    noise = torch.randn(NOISE, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)

    def weight(*sides: int) -> torch.Tensor:
        count = math.prod(sides)
        return (noise.repeat(math.ceil(count / NOISE))[:count] * sides[-1] ** -0.5).view(sides).clone()

    def block(layer: int) -> dict[str, torch.Tensor]:
        at, small = f"model.layers.{layer}", kv_heads * width // heads
        sides = {"q": width, "k": small, "v": small}
        made = {f"{at}.self_attn.{name}_proj.weight": weight(out, width) for name, out in sides.items()}
        made |= {f"{at}.self_attn.{name}_proj.bias": weight(out) for name, out in sides.items()}
        made |= {f"{at}.mlp.{name}_proj.weight": weight(inner, width) for name in ("gate", "up")}
        made |= {f"{at}.self_attn.o_proj.weight": weight(width, width), f"{at}.mlp.down_proj.weight": weight(width, inner)}
        return made | {f"{at}.{name}_layernorm.weight": torch.ones(width, dtype=torch.bfloat16) for name in ("input", "post_attention")}

    shards = [lambda: {"model.embed_tokens.weight": weight(vocabulary, width)}]
    for first in range(0, blocks, 4):
        shards.append(lambda first=first: {k: v for n in range(first, min(first + 4, blocks)) for k, v in block(n).items()})
    shards.append(lambda: {"model.norm.weight": torch.ones(width, dtype=torch.bfloat16), "lm_head.weight": weight(vocabulary, width)})
    where: dict[str, str] = {}
    total = 0
    for number, make in enumerate(shards, 1):
        name, tensors = f"model-{number:05d}-of-{len(shards):05d}.safetensors", make()
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        total += sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))
    return total


@contextmanager
def control_group(nbytes: int) -> Iterator[Path | None]:
    """A control group with a memory limit, version 1 or 2; None where none can be made."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"abliterate-bench-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(nbytes))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        try:
            yield group
        finally:
            for _ in range(50):
                try:
                    group.rmdir()
                    break
                except OSError:  # what it held is still being let go of
                    time.sleep(0.1)
        return
    yield None


def dropped(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_group(group: Path | None, call: list[str], threads: int) -> tuple[str, int]:
    """Run a command in a control group. Returns what it said, and its peak of resident memory in bytes.

    The peak is what the kernel keeps of its address space, looked up every 20 ms: the one that ``wait4`` gives is also this process's,
    from which the command was started.
    """
    script = f"echo $$ > {group}/cgroup.procs; " if group else ""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        ["bash", "-c", script + 'exec "$@"', "_", *call], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert started.stdout is not None
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, high_water(started.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    said = started.stdout.read()
    status = started.wait()
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"{' '.join(call[:4])} ended with status {status}:\n{said[-2000:]}")
    return said, peak


def high_water(pid: int) -> int:
    """The largest resident memory of a process so far, in bytes; 0 where it is gone, or is still the shell that will become it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    of = dict(line.split(":", 1) for line in lines if ":" in line)
    return 0 if of["Name"].strip() == "bash" or "VmHWM" not in of else int(of["VmHWM"].split()[0]) * 1024


def read_all(folder: Path) -> float:
    """Seconds to read every byte of the weights through one buffer."""
    buffer = bytearray(BUFFER)
    started = time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - started


def products(folder: Path, tokens: int) -> float:
    """Seconds for the matrix products of the blocks with so many tokens at once, in the type that the program computes in."""
    import torch

    from abliterate.compute.memory import has_bf16_instructions

    config = json.loads((folder / "config.json").read_text())
    width, inner, blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    small = config["num_key_value_heads"] * width // config["num_attention_heads"]
    dtype = torch.bfloat16 if has_bf16_instructions() else torch.float32
    sides = [(width, width), (small, width), (small, width), (width, width), (inner, width), (inner, width), (width, inner)]
    weights = [torch.randn(out, into).to(dtype) for out, into in sides]
    inputs = {into: torch.randn(tokens, into).to(dtype) for into in (width, inner)}
    torch.nn.functional.linear(inputs[width], weights[0])
    started = time.perf_counter()
    for _ in range(blocks):
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)
    return time.perf_counter() - started


def tokens_of(folder: Path, limit: int) -> int:
    """How many tokens are computed: each prompt's own, and what all have in common once."""
    from abliterate.compute.prefix import prefix_length
    from abliterate.model.chat.template import encode, load_tokenizer
    from abliterate.prompts import RoleSets

    sets, tokenizer = RoleSets(("harmful",), (), limit=limit), load_tokenizer(folder)
    ids = [i for role in ("target", "baseline") for i in encode(tokenizer, [p.text for p in sets.estimating(role)])]  # type: ignore[arg-type]
    shared = prefix_length(ids, 1)
    return shared + sum(len(i) - shared for i in ids)


def measure(size: str, limit_gib: float, turns: int, threads: int, prompts: int, place: Path | None) -> Figures:
    """Everything of one size, in turns."""
    import torch

    with tempfile.TemporaryDirectory(prefix="abliterate-bench-", dir=place) as scratch:
        folder = Path(scratch) / "model"
        nbytes = write_checkpoint(folder, SHAPES[size])
        os.sync()
        torch.set_num_threads(threads)
        found = Figures(nbytes / 1e9, limit_gib, "a control group", tokens_of(folder, prompts))
        limit = int(limit_gib * 2**30)
        for turn in range(turns):
            with control_group(limit) as group:
                if group is None:
                    found.limited_by = "--max-memory alone"
                out = Path(scratch) / f"activations-{turn}.safetensors"
                call = [
                    sys.executable,
                    "-m",
                    "abliterate",
                    "collect",
                    "--model",
                    str(folder),
                    "--target",
                    "harmful",
                    "--limit",
                    str(prompts),
                ]
                dropped(folder)
                said, peak = in_group(group, [*call, "--max-memory", str(int(SHARE * limit)), "--out", str(out)], threads)
            stage = re.search(r"activations \(prompts\): \d+ in ([\d.]+) s", said)
            assert stage is not None and "read block by block" in said, said
            found.seconds["collect"].append(float(stage[1]))
            found.peak_bytes.append(peak)
            dropped(folder)
            found.seconds["read"].append(read_all(folder))
            found.seconds["products"].append(products(folder, found.tokens))
            print(f"turn {turn + 1}: " + ", ".join(f"{k} {v[-1]:.1f} s" for k, v in found.seconds.items()), file=sys.stderr, flush=True)
        return found


def run(args: argparse.Namespace) -> None:
    """All sizes asked for, as a table and, where asked for, as JSON."""
    found = [measure(size, limit, args.repeat, args.threads, args.prompts, args.work) for size, limit in args.sizes]
    print(table(found))
    if args.json is not None:
        args.json.write_text(json.dumps(document(found), indent=1) + "\n")


def sizes(text: str) -> list[tuple[str, float]]:
    """``4:2,15:4``: a shape and its memory limit in GiB."""
    found = [(shape, float(limit)) for shape, _, limit in (part.partition(":") for part in text.split(","))]
    unknown = next((shape for shape, _ in found if shape not in SHAPES), None)
    if unknown is not None:
        raise argparse.ArgumentTypeError(f"no shape {unknown!r}; there are {', '.join(SHAPES)}")
    return found


def add_to(commands: Any) -> None:
    """The command ``sweep``."""
    command = commands.add_parser("sweep", help="collecting beyond memory, against reading the bytes and the matrix products")
    command.add_argument("--sizes", type=sizes, default=[("4", 2.0), ("15", 4.0)], metavar="GB:GiB,...", help="shape and limit (4:2,15:4)")
    command.add_argument("--repeat", type=int, default=5, help="turns (default %(default)s)")
    command.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of every way (default: all cores)")
    command.add_argument("--prompts", type=int, default=16, help="of each of the two sets (default %(default)s)")
    command.add_argument("--work", type=Path, default=ROOT / "runs", metavar="DIR", help="where a temporary folder is made (default runs/)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    command.set_defaults(run=run)


def table(figures: list[Figures]) -> str:
    """The figures for people."""
    rows = ["size GB | limit GiB | collect s | read s | products s | ratio to the larger | peak RSS GiB | tokens"]
    for f in figures:
        seconds = " | ".join(f"{median(f.seconds[k]):.1f}" for k in ("collect", "read", "products"))
        rows.append(f"{f.gigabytes:.1f} | {f.limit_gib:g} | {seconds} | {f.ratio:.2f} | {max(f.peak_bytes) / 2**30:.2f} | {f.tokens}")
    return "\n".join(rows)


def document(figures: list[Figures]) -> list[dict[str, Any]]:
    """The figures for programs."""
    return [{**asdict(f), "ratio": f.ratio} for f in figures]
