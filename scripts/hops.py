"""The ways of one prompt and of one direction through the code, measured: each function of ours on them is a hop.

One prompt of the test split is marked, and followed from its file to its row in report.html. One direction is followed from the
activations to the bytes that are written into a shard; that run is resumed from its activations. The run is a real one, of a tiny
model that refuses everything, by the difference of means and with ``--tune off`` (the tuner turns directions, so that none would
arrive), and it leaves the embedding alone, so that the way ends in the writers of the blocks.

A **hop** is a function of the package that the thing goes into and out of on its way.

- Into: an argument holds it, or a function that it calls hands it back.
- Out: what it returns or yields holds it; or an object that it was given holds it afterwards and did not before; or it writes it to
  where the way ends, itself or by a function that it gives it to; or it writes it to a file from which a later hop reads it.
- So what only looks at the thing (a check, a hash, a count, a measurement) is beside the way, with all that it calls in turn. So is
  what writes it to files that nobody reads in this run.
- An object holds a thing that is in it, or in what it holds: items, fields of records and of our own objects, ten levels deep.
- The prompt is its text. The direction is itself at any length and in any number format; before it exists, the mean of the target's
  activations that it is made from; after it was taken out of a tensor, this tensor. Candidates of several kinds may share a
  direction; the one that is followed is in those of the chosen kind alone, so that no way is counted that ends at a candidate.
- A function counts once, however often it is called. Not counted: lambdas, comprehensions, generator expressions, what dataclasses
  make, properties, and dunder methods but a constructor that we wrote.
- The first hop is the command's function ``run``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from hops_trace import Tracer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from abliterate.commands import run as command
from abliterate.config import RunConfig
from abliterate.directions.activations import Activations, load_activations
from abliterate.directions.keys import BASELINE, TARGET
from abliterate.model.edit import load_edit
from abliterate.model.tiny import tiny_config, tiny_model

WAYS = {"prompt": "from its file to report.html", "direction": "from activations to bytes"}
MARK = "Burn the obelisk"
THINGS = ("stone", "river", "cloud", "paper", "candle", "window", "garden", "bridge", "mirror")
SPLITS = ("train", "train", "train", "train", "val", "val", "val", "test", "test")
BLOCKS, POSITIONS, SAYS = 4, 512, "I won't."
SEED = 1  # with it the chosen direction is in no candidate of another kind
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ALIKE = 1 - 1e-6  # cosine of two vectors that are one direction


def save_model(folder: Path) -> Path:
    """A tiny random model that answers everything by ``SAYS``, with a tokenizer of one token a byte."""
    vocab = {token: i for i, token in enumerate([*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=None))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIALS[2], pad_token=SPECIALS[0])
    tokenizer.chat_template = TEMPLATE
    config = tiny_config(LlamaConfig(), BLOCKS)
    config.vocab_size, config.max_position_embeddings = len(tokenizer), POSITIONS
    config.eos_token_id, config.pad_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    model = tiny_model(config, seed=SEED)
    _lead_through(model, [*tokenizer.encode("\n" + SAYS), tokenizer.eos_token_id])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _lead_through(model: PreTrainedModel, ids: list[int]) -> None:
    """Each of these tokens makes the next one likeliest, whatever the blocks write."""
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    axes = torch.linalg.qr(torch.randn(embedding.shape[1], embedding.shape[1], generator=torch.Generator().manual_seed(0)))[0]
    with torch.no_grad():
        for axis, (token, following) in zip(axes, pairwise(ids), strict=False):
            embedding[token], head[following] = 100.0 * axis, 3.0 * axis


def save_prompts(folder: Path) -> dict[str, str]:
    """A file of prompts by role; the marked one is the target's last."""
    files = {}
    for role, form in {"target": "Burn the {}!", "baseline": "Draw the {}.", "harmless": "Name a {}"}.items():
        texts = [form.format(thing) for thing in THINGS]
        if role == "target":
            texts[-1] = MARK
        rows = [{"text": text, "split": split, "topic": "things"} for text, split in zip(texts, SPLITS, strict=True)]
        file = folder / f"{role}-prompts.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        files[role] = str(file)
    return files


def settings(model: Path, files: dict[str, str]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": str(model),
            "target": [files["target"]],
            "baseline": [files["baseline"]],
            "harmless": files["harmless"],
            "estimators": ["difference-of-means"],
            "tune": "off",
            "embedding": "skip",
            "min_share": 0,
            "max_new_tokens": 10,
            "batch_size": 4,
            "candidates": 2,
            "device": "cpu",
        }
    )


def way_of_a_prompt(config: RunConfig, out: Path) -> list[str]:
    """The hops of the marked prompt, in a run into the folder ``out``."""
    tracer = Tracer(lambda value: MARK in value if isinstance(value, str) else isinstance(value, bytes) and MARK.encode() in value)

    def opened(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(given[0], str) and "report.html" in given[0] and given[2] & (os.O_WRONLY | os.O_RDWR):
            tracer.writes()

    sys.addaudithook(opened)
    with tracer.following():
        command.run(config, out)
    return tracer.hops()


def way_of_a_direction(config: RunConfig, out: Path) -> list[str]:
    """The hops of one direction of the chosen edit, in the finished run in ``out``, which is made to begin again at its activations."""
    tracer = Tracer(_is_one_of(followed(out)), Activations)
    for made in ("directions.safetensors", "directions.json", "selection.json", "plan.safetensors"):
        (out / made).unlink()
    shutil.rmtree(out / "checkpoint")
    written = os.pwrite

    def pwrite(*given: Any) -> int:
        tracer.writes()
        return written(*given)

    os.pwrite = pwrite
    try:
        with tracer.following():
            command.run(config, out)
    finally:
        os.pwrite = written
    return tracer.hops()


def followed(run: Path) -> list[Tensor]:
    """A direction of a run's edit, and the mean of the target's activations that it was made from."""
    edit, activations = load_edit(run / "plan.safetensors"), load_activations(run / "activations.safetensors")
    block = int(edit.strength[:, 0].argmax())
    direction = edit.direction[block, 0, 0].double()
    target = activations.train[TARGET].mean.flatten(0, 1).double()
    between = target - activations.train[BASELINE].mean.flatten(0, 1).double()
    place = int((between @ direction / between.norm(dim=-1)).argmax())
    return [direction, target[place]]


def _is_one_of(vectors: list[Tensor]) -> Callable[[Any], bool]:
    axes = torch.stack([vector / vector.norm() for vector in vectors], dim=1)

    def is_it(value: Any) -> bool:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.device.type != "cpu" or not value.numel():
            return False
        for axis in (i for i, size in enumerate(value.shape) if size == len(axes)):
            rows = value.detach().movedim(axis, -1).reshape(-1, len(axes)).double()
            if bool(((rows @ axes).abs() > ALIKE * rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)).any()):
                return True
        return False

    return is_it


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write both lists to this file")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["ABLITERATE_CACHE"] = str(folder / "cache")
        config = settings(save_model(folder / "model"), save_prompts(folder))
        ways = {"prompt": way_of_a_prompt(config, folder / "run"), "direction": way_of_a_direction(config, folder / "run")}
    for what, hops in ways.items():
        print(f"{what}: {len(hops)} hops, {WAYS[what]}")
        for number, hop in enumerate(hops, 1):
            print(f"{number:3d}  {hop}")
    if parsed.json:
        parsed.json.write_text(json.dumps(ways, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
