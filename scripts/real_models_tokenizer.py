"""The tokenizer of a GGUF file as it was published: what the file holds of it, and what it doesn't say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from real_models_table import TokenizerFacts

from abliterate.errors import InputError


def save_tokenizer(read: Any, facts: TokenizerFacts, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template. ``read`` is the tokenizer that transformers made of the file.

    Raises InputError where the result isn't the published one.
    """
    model = json.loads(read.backend_tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"].items(), key=lambda item: item[1])
    written = json.dumps(_tokenizer(vocabulary, model["merges"], facts), indent=2, ensure_ascii=False).encode()
    digest = hashlib.sha256(written).hexdigest()
    if facts.sha256 not in (None, digest):
        raise InputError(f"the tokenizer in the GGUF file isn't the published one: tokenizer.json has sha256 {digest}, not {facts.sha256}")
    (folder / "tokenizer.json").write_bytes(written)
    (folder / "tokenizer_config.json").write_text(json.dumps(facts.config, indent=2) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(read.chat_template, encoding="utf-8")


def _tokenizer(vocabulary: list[tuple[str, int]], merges: list[Any], facts: TokenizerFacts) -> dict[str, Any]:
    """tokenizer.json in the form and order of the library tokenizers."""
    first = next(index for token, index in vocabulary if token == facts.markers[0])
    sides = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": facts.split}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, **sides, "special": token in facts.special} for index, token in enumerate(facts.markers, first)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytewise]},
        "post_processor": bytewise,
        "decoder": bytewise,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for token, index in vocabulary if index < first},
            "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        },
    }
