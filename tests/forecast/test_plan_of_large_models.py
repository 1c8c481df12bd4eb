"""A plan of a model whose weights are not there: its config and its index say enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import byte_tokenizer

from abliterate.cli.main import main

LAYERS, WIDTH, INNER, KV, VOCABULARY = 64, 5120, 27648, 1024, 152064
CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": VOCABULARY, "tie_word_embeddings": False, "dtype": "bfloat16",
    "hidden_act": "silu", "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
}  # fmt: skip
BLOCK = [f"self_attn.{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")] + ["self_attn.o_proj.weight"]
BLOCK += [f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")] + ["input_layernorm.weight", "post_attention_layernorm.weight"]
PARAMETERS = 2 * VOCABULARY * WIDTH + WIDTH + LAYERS * (2 * WIDTH * WIDTH + 2 * KV * WIDTH + 3 * WIDTH * INNER + 3 * WIDTH + 2 * KV)


@pytest.fixture
def without_weights(tmp_path: Path) -> Path:
    """The config, index and tokenizer of DeepSeek-R1-Distill-Qwen-32B's shape."""
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    names += [f"model.layers.{layer}.{inner}" for layer in range(LAYERS) for inner in BLOCK]
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    index = {"metadata": {"total_size": 2 * PARAMETERS}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_a_plan_needs_only_the_config_and_the_index(without_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # without a tuner, which only a whole model has: its steps take longer than what reading the weights once saves
    assert main(["plan", "--model", str(without_weights), "--device", "cpu", "--max-memory", "12GiB", "--tune", "off"]) == 0
    printed = capsys.readouterr().out
    lines: dict[str, list[str]] = {}
    for line in printed.splitlines():
        lines.setdefault(line[:12].strip(), []).append(line[12:])
    assert "64 blocks of width 5120" in lines["model"][0]
    assert f"{PARAMETERS / 1e9:.2f} G parameters" in lines["weights"][0] and f"{2 * PARAMETERS / 1e9:.2f} GB" in lines["weights"][0]
    assert "block by block" in lines["memory"][0]
    assert "64 MLP down projections" in lines["edits"][0] and "64 attention output projections" in lines["edits"][0]
    assert any("hold the whole model" in line for line in lines["cheaper"])


def test_a_run_needs_the_weights(without_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", str(without_weights), "--out", str(tmp_path / "run")]) == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("abliterate: ")]) == 1
