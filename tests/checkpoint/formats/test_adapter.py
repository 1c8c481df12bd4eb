"""The edit as a LoRA adapter: what PEFT makes of it is the edited checkpoint; what is not of low rank is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed import save_architecture, save_fp8, save_mxfp4, store, tensors_of
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from abliterate.checkpoint.edit import edit_checkpoint
from abliterate.checkpoint.formats.adapter import CONFIG, WEIGHTS, write_adapter
from abliterate.errors import InputError
from abliterate.model.edit import Edit, edit_from_direction, edit_from_rows
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.formats import fp8

LAYERS, D_MODEL, VOCABULARY = 2, 64, 96
Base = Callable[[str], ModelFolder]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


PLANS: dict[str, Callable[[], Edit]] = {
    "one direction": lambda: edit_from_direction(_random(D_MODEL), LAYERS, policy="skip"),
    "a direction a layer": lambda: edit_from_direction(_random(LAYERS, D_MODEL), LAYERS),
    "two directions": lambda: edit_from_rows(_random(LAYERS, 2, D_MODEL), torch.ones(LAYERS, 2)),
    "other strengths": lambda: edit_from_direction(_random(D_MODEL), LAYERS, torch.tensor([[0.5, 0.3], [0.0, 0.8]]), "skip"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny float32 model of an architecture, made once."""
    done: dict[str, ModelFolder] = {}

    def make(model_type: str) -> ModelFolder:
        if model_type not in done:
            changes: dict[str, Any] = {"first_k_dense_replace": 1} if model_type == "deepseek_v3" else {}
            done[model_type] = open_folder(save_architecture(tmp_path_factory.mktemp("base") / model_type, model_type, LAYERS, **changes))
        return done[model_type]

    return make


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        made: Tensor = model(input_ids=torch.arange(3, 43)[None], use_cache=False).logits
    return made


def _load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def _adapted(folder: ModelFolder, adapter: Path) -> Any:
    """The base with the adapter; a tensor that PEFT can't place is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*adapter keys.*")
        return PeftModel.from_pretrained(_load(folder.path), adapter)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _check_equal_to_the_checkpoint(folder: ModelFolder, edit: Edit, place: Path) -> None:
    write_adapter(folder, edit, place / "adapter", "base")
    edit_checkpoint(folder, edit, place / "edited", "base", lambda proof: "card\n")
    expected = _logits(_load(place / "edited"))
    adapted = _adapted(folder, place / "adapter")
    assert _distance(_logits(adapted), expected) < 1e-4
    assert _distance(_logits(adapted.merge_and_unload()), expected) < 1e-4
    assert _distance(_logits(_load(folder.path)), expected) > 1e-2


@pytest.mark.parametrize("edit", PLANS)
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "gemma3_text", "olmo2"])
def test_the_adapted_model_computes_what_the_edited_checkpoint_does(model_type: str, edit: str, base: Base, tmp_path: Path) -> None:
    _check_equal_to_the_checkpoint(base(model_type), PLANS[edit](), tmp_path)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_an_untied_embedding_is_edited_too(strength: float, base: Base, tmp_path: Path) -> None:
    folder = base("llama")
    assert not folder.tied
    edit = edit_from_direction(_random(D_MODEL), LAYERS, strength)
    assert edit.embedding == "edit"
    _check_equal_to_the_checkpoint(folder, edit, tmp_path)
    made = load_file(tmp_path / "adapter" / WEIGHTS)
    assert made["base_model.model.model.embed_tokens.lora_embedding_A"].shape == (1, VOCABULARY)
    assert made["base_model.model.model.embed_tokens.lora_embedding_B"].shape == (D_MODEL, 1)


def test_nothing_enters_the_stream_of_the_adapted_model_along_the_direction(base: Base, tmp_path: Path) -> None:
    r = _random(D_MODEL) / _random(D_MODEL).norm()
    write_adapter(base("llama"), edit_from_direction(r, LAYERS), tmp_path / "a", "base")
    adapted = _adapted(base("llama"), tmp_path / "a")
    with torch.no_grad():
        states = adapted(input_ids=torch.arange(3, 43)[None], output_hidden_states=True).hidden_states[:-1]
        with adapted.disable_adapter():
            before = adapted(input_ids=torch.arange(3, 43)[None], output_hidden_states=True).hidden_states[:-1]
    assert all(float((s @ r).abs().max() / s.norm(dim=-1).max()) < 1e-5 for s in states)
    assert all(float((s @ r).abs().max() / s.norm(dim=-1).max()) > 1e-2 for s in before)


@pytest.mark.parametrize(("edit", "k"), [("one direction", 1), ("two directions", 2)])
def test_the_adapter_holds_two_thin_matrices_a_writer(edit: str, k: int, base: Base, tmp_path: Path) -> None:
    folder, out = base("llama"), tmp_path / "adapter"
    heard: list[int] = []
    matrices, size = write_adapter(folder, PLANS[edit](), out, "owner/name", heard.append)
    inputs = {
        "self_attn.o_proj": folder.config.num_attention_heads * folder.config.head_dim,
        "mlp.down_proj": folder.config.intermediate_size,
    }
    expected = {}
    for layer in range(LAYERS):
        for module, width in inputs.items():
            expected[f"base_model.model.model.layers.{layer}.{module}.lora_A.weight"] = (k, width)
            expected[f"base_model.model.model.layers.{layer}.{module}.lora_B.weight"] = (D_MODEL, k)
    made = load_file(out / WEIGHTS)
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == expected
    assert {tensor.dtype for tensor in made.values()} == {torch.float32}
    assert (matrices, size) == (2 * LAYERS, sum(tensor.nbytes for tensor in made.values()))
    assert sum(heard) == sum(4 * D_MODEL * width * LAYERS for width in inputs.values())
    assert sorted(path.name for path in out.iterdir()) == ["README.md", CONFIG, WEIGHTS]


def test_the_config_is_one_of_peft_and_names_every_matrix(base: Base, tmp_path: Path) -> None:
    write_adapter(base("llama"), PLANS["two directions"](), tmp_path / "a", "owner/name")
    config: Any = PeftConfig.from_pretrained(tmp_path / "a")
    assert (config.peft_type, config.task_type, config.base_model_name_or_path) == ("LORA", "CAUSAL_LM", "owner/name")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias, config.inference_mode) == (2, 2, 0.0, "none", True)
    writers = ("self_attn.o_proj", "mlp.down_proj")
    assert set(config.target_modules) == {f"model.layers.{layer}.{module}" for layer in range(LAYERS) for module in writers}


@pytest.mark.parametrize(("name", "said"), [("owner/name", True), ("folder", False)])
def test_the_card_names_a_base_of_the_hub_in_its_metadata(name: str, said: bool, base: Base, tmp_path: Path) -> None:
    write_adapter(base("llama"), PLANS["one direction"](), tmp_path / "a", name)
    head, _, body = (tmp_path / "a" / "README.md").read_text(encoding="utf-8").removeprefix("---\n").partition("---\n")
    assert (f"base_model: {name}\n" in head) == said and "library_name: peft\n" in head
    assert name in body and "Rank 1, 4 matrices" in body


def test_block_scaled_fp8_is_read_by_its_scales(tmp_path: Path) -> None:
    folder = open_folder(save_fp8(tmp_path / "base", "llama", d_model=128))
    edit = edit_from_direction(_random(128), LAYERS, policy="skip")
    write_adapter(folder, edit, tmp_path / "adapter", "base")
    made, stored = load_file(tmp_path / "adapter" / WEIGHTS), tensors_of(folder.path)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.mlp.down_proj"
        weight = fp8.dequantise(stored[f"{name}.weight"], stored[f"{name}.weight_scale_inv"])
        a, b = (made[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        r = edit.direction[layer, 1]
        torch.testing.assert_close(b @ a, -r.T @ (r @ weight), rtol=1e-4, atol=1e-6)


REFUSED: dict[str, tuple[str, Callable[[Edit], Edit], str]] = {
    "norms kept": ("llama", lambda edit: replace(edit, keep_norms=True), "norms"),
    "tied embeddings edited": ("gemma2", lambda edit: replace(edit, embedding="edit"), "--embedding skip"),
    "embeddings untied": ("gemma2", lambda edit: replace(edit, embedding="untie"), "--embedding skip"),
    "no strength": ("llama", lambda edit: edit.scaled(0.0), "every strength is 0"),
    "biases and positions": ("gpt2", lambda edit: replace(edit, embedding="edit"), "--embedding skip"),
    "biases of Conv1D": ("gpt2", lambda edit: edit, "c_proj.bias is not a plain matrix"),
    "biases": ("gpt_neox", lambda edit: edit, "dense.bias is not a plain matrix"),
    "experts of Mixtral": ("mixtral", lambda edit: edit, "experts.0.w2.weight is not a plain matrix"),
    "experts of Qwen": ("qwen3_moe", lambda edit: edit, "experts.0.down_proj.weight is not a plain matrix"),
    "experts of DeepSeek": ("deepseek_v3", lambda edit: edit, "experts.0.down_proj.weight is not a plain matrix"),
    "fused experts": ("gpt_oss", lambda edit: edit, "is not a plain matrix"),
}


@pytest.mark.parametrize(("model_type", "change", "named"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_an_edit_of_low_rank_on_plain_matrices_is_refused(
    model_type: str, change: Callable[[Edit], Edit], named: str, base: Base, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        write_adapter(base(model_type), change(PLANS["one direction"]()), tmp_path / "adapter", "base")
    assert named in str(error.value) and "as an adapter" in str(error.value) and "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_packed_experts_are_refused(tmp_path: Path) -> None:
    folder = open_folder(save_mxfp4(tmp_path / "base"))
    with pytest.raises(InputError, match="is not a plain matrix"):
        write_adapter(folder, PLANS["one direction"](), tmp_path / "adapter", "base")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_folder_that_holds_something_is_left_as_it_is(base: Base, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        write_adapter(base("llama"), PLANS["one direction"](), tmp_path, "base")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_damaged_writer_is_refused(base: Base, tmp_path: Path) -> None:
    folder = base("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors = tensors_of(folder.path)
    tensors[name][0, 0] = torch.nan
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_bytes((folder.path / "config.json").read_bytes())
    store(tmp_path / "base", tensors)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.down_proj\.weight holds NaN"):
        write_adapter(open_folder(tmp_path / "base"), PLANS["one direction"](), tmp_path / "adapter", "base")
    assert not (tmp_path / "adapter").exists()
