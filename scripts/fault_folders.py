"""Damage to what a checkpoint's parts say of each other: heads, vocabularies, shapes, numbers, leftovers, names, chat templates."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fault_bases import TEMPLATE
from fault_bytes import DAMAGES, damage
from safetensors.torch import load_file, save_file
from torch import Tensor

from abliterate.model.index import INDEX

_OF_BYTES = frozenset(DAMAGES)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = "m['content']"
PARTS = "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
TEMPLATES: tuple[Any, ...] = (
    # the user's words are lost, whole or in part
    TEMPLATE.replace("{{ m['content'] }}", PARTS), TEMPLATE.replace("{{ m['content'] }}", ""), TEMPLATE.replace(WORDS, WORDS + "[:3]"),
    TEMPLATE.replace(WORDS, "m['text']"), TEMPLATE.replace("messages %}", "messages if m['role'] == 'system' %}"), "what is what?", "",
    # the template fails
    "{{ raise_exception('only tools') }}", "{{ 1 / 0 }}", "{{ messages[7]['content'] }}", "{{ messages.a.b.c }}", "{% for",
    "{{ m | nosuch }}", "{% for i in range(10 ** 9) %}{% endfor %}", "{{ ''.__class__.__mro__ }}", "{% include 'x' %}",
    "{{ messages | tojson(bad=1) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages[0]['content'] + 7 }}",
    # no template
    7, True, [], {}, ["x"], {"name": "chat"}, [{"name": "chat", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}],
    [{"name": "default", "template": TEMPLATE}], [{"name": 7, "template": []}], None, b"\xff\xfe{", b"",
)  # fmt: skip
LEFT = (
    "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin", "pytorch_model.bin", "backup.zip",
    "global_step5/mp_rank_00_model_states.pt", "runs/nov/events.out.tfevents.1", "checkpoint-5/model.safetensors", "train.log",
    "adapter_config.json", "adapter_model.safetensors",
)  # fmt: skip
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a" * 16 + "\nsize 4721\n"
OTHER_SIZES: dict[str, tuple[Any, ...]] = {
    "vocab_size": (47, 49, 40, 64, 1, 0, -1, 10**6, "48", None, 48.5),
    "intermediate_size": (32, 65, 128, 0, -1),
    "num_hidden_layers": (1, 2, 3, 4, 0, 12),
    "hidden_size": (16, 64, 33),
    "num_key_value_heads": (1, 4, 3, 0),
    "head_dim": (8, 32),
}


def tensors_of(model: Path) -> dict[str, Tensor]:
    """Every tensor of the shards that the index names."""
    shard_of: Mapping[str, str] = json.loads((model / INDEX).read_text())["weight_map"]
    shards = {shard: load_file(model / shard) for shard in sorted(set(shard_of.values()))}
    return {name: shards[shard][name] for name, shard in shard_of.items()}


def store(model: Path, changed: Mapping[str, Tensor | None]) -> None:
    """Other values for tensors, new tensors (into the first shard), or none any more."""
    document = json.loads((model / INDEX).read_text())
    shard_of: dict[str, str] = document["weight_map"]
    first = min(shard_of.values())
    for shard in {shard_of.get(name, first) for name in changed}:
        kept = {name: t for name, t in load_file(model / shard).items() if name not in changed}
        new = {name: t.contiguous() for name, t in changed.items() if t is not None and shard_of.get(name, first) == shard}
        save_file(kept | new, model / shard, {"format": "pt"})
    for name, tensor in changed.items():
        shard_of.setdefault(name, first) if tensor is not None else shard_of.pop(name, None)
    (model / INDEX).write_text(json.dumps(document))


def reconfigure(model: Path, **changed: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def _like(tensor: Tensor, rng: random.Random, shape: tuple[int, ...] | None = None) -> Tensor:
    made = torch.randn(shape or tensor.shape, generator=torch.Generator().manual_seed(rng.randrange(2**31)))
    return made.to(tensor.dtype)


@damage("two heads, one head or none, whatever the config says")
def heads(model: Path, rng: random.Random) -> None:
    held = tensors_of(model)
    other = _like(held[EMBEDDING], rng)
    one_row = held[EMBEDDING].clone()
    one_row[rng.randrange(len(one_row))] += 1
    reconfigure(model, tie_word_embeddings=rng.random() < 0.7)
    store(model, {HEAD: rng.choice((other, one_row, held[EMBEDDING].clone(), None, other[:-1]))})


@damage("sizes that differ from what is stored")
def sizes(model: Path, rng: random.Random) -> None:
    held = tensors_of(model)
    rows = rng.choice((47, 49, 64))
    if rng.random() < 0.3:
        chosen = [name for name in (EMBEDDING, HEAD) if name in held]
        names = rng.choice((chosen, chosen[:1], chosen[-1:]))
        store(model, {name: _like(held[name], rng, (rows, held[name].shape[1])) for name in names})
    else:
        key = rng.choice(("vocab_size", "vocab_size", *OTHER_SIZES))
        reconfigure(model, **{key: rng.choice(OTHER_SIZES[key])})


@damage("NaN or infinity in the weights")
def numbers(model: Path, rng: random.Random) -> None:
    held = tensors_of(model)
    name = rng.choice(sorted(held))
    tensor = held[name].clone()
    value = rng.choice((math.nan, math.inf, -math.inf, torch.finfo(tensor.dtype).max))
    places = torch.tensor([rng.randrange(tensor.numel()) for _ in range(rng.choice((1, 1, 5)))])
    tensor.view(-1)[places] = value
    store(model, {name: tensor if rng.random() < 0.8 else torch.full_like(tensor, value)})


@damage("files that training left")
def leftovers(model: Path, rng: random.Random) -> None:
    for name in rng.sample(LEFT[:-2], rng.randint(1, 4)):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(b"left by training")
    if rng.random() < 0.5:
        adapter(model, rng)


def adapter(model: Path, rng: random.Random) -> None:
    """A LoRA adapter of every ``q_proj``, as it lies in a folder into which it was merged."""
    matrices = {name: t for name, t in tensors_of(model).items() if name.endswith("q_proj.weight")}
    pairs = {}
    for name, matrix in matrices.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        pairs[f"{stem}.lora_A.weight"] = _like(matrix, rng, (2, matrix.shape[1]))
        pairs[f"{stem}.lora_B.weight"] = _like(matrix, rng, (matrix.shape[0], 2))
    save_file(pairs, model / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "bias": "none"}
    (model / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "x"}))


@damage("stored tensors that the model does not use")
def unused(model: Path, rng: random.Random) -> None:
    width = tensors_of(model)[EMBEDDING].shape[1]
    names = (
        "score.weight", "lm_head.bias", "model.layers.0.mlp.extra.weight", "model.layers.7.mlp.down_proj.weight", "v_head.summary.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.mlp.down_proj.bias", "model.layers.0.self_attn.q_proj.bias",
        "optimizer.state.0.exp_avg", "model.layers.0.self_attn.q_proj.lora_A.weight",
    )  # fmt: skip
    if rng.random() < 0.3:
        reconfigure(model, attention_bias=False, mlp_bias=False)
    else:
        new = [name for name in rng.sample(names, rng.randint(1, 2)) if name not in tensors_of(model)]
        store(model, {name: torch.ones(width) for name in new})


@damage("git-lfs pointer instead of a file")
def pointer(model: Path, rng: random.Random) -> None:
    shards = sorted(model.glob("*.safetensors"))
    for path in rng.choice((rng.sample(shards, 1), shards, [model / INDEX], [model / "config.json"], [model / "tokenizer.json"])):
        path.write_text(POINTER)


@damage("names of a compiled or wrapped module")
def prefixed(model: Path, rng: random.Random) -> None:
    held = tensors_of(model)
    prefix = rng.choice(("_orig_mod.", "module.", "_fsdp_wrapped_module.", "base_model.model."))
    inner = rng.random() < 0.3
    new = {f"model.{prefix}{name.removeprefix('model.')}" if inner else prefix + name: t for name, t in held.items()}
    store(model, {**dict.fromkeys(held), **new})


@damage("chat template that loses the words, fails or is none")
def template(model: Path, rng: random.Random) -> None:
    odd = rng.choice(TEMPLATES)
    file, config = model / "chat_template.jinja", model / "tokenizer_config.json"
    file.unlink(missing_ok=True)
    if isinstance(odd, bytes) or (isinstance(odd, str) and rng.random() < 0.7):
        file.write_bytes(odd if isinstance(odd, bytes) else odd.encode())
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": odd}))


WHOLE = frozenset(DAMAGES) - _OF_BYTES
