"""Every family of architectures: tiny random checkpoints through the real editor, judged by hooks of this file's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, OTHERS, TIED, VISION, Case, small
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from abliterate.checkpoint.edit import EditResult, edit_checkpoint
from abliterate.compute.hooks import ablated
from abliterate.compute.load import InMemory
from abliterate.errors import InputError
from abliterate.model.edit import Edit, edit_from_direction
from abliterate.model.folder import open_folder

Change = Callable[[dict[str, Tensor]], None]
D_MODEL = 64
IDS = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(3))


# What layouts.toml doesn't know; recurrent_gemma, phi4_multimodal and the like too, but their small copies are large.
HELD_OUT = [
  "afmoe", "aria_text", "axk1", "axk2", "bitnet", "codegen", "doge", "falcon_mamba", "flint", "gemma3n_text", "gpt_bigcode",
  "gpt_neo", "gptj", "hy_v3", "hyperclovax", "jetmoe", "laguna", "mamba", "minimax", "mllama", "modernbert-decoder", "mpt",
  "nanochat", "olmo_hybrid", "opt", "persimmon", "rwkv", "vaultgemma", "xglm", "youtu", "zaya",
]  # fmt: skip
EXACT = set(HELD_OUT) - {
  "axk1", "doge", "gemma3n_text", "jetmoe", "minimax", "mllama", "modernbert-decoder", "olmo_hybrid", "rwkv", "xglm", "zaya",
}  # fmt: skip
BLOOM = "transformer.word_embeddings.weight"


SEEING = re.compile("vision|visual|projector|connector")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLITERATE_CACHE", str(tmp_path / "cache"))
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def random_direction() -> Tensor:
    return torch.randn(D_MODEL, generator=torch.Generator().manual_seed(7))


def edit(model: Path, plan: Edit, out: Path) -> EditResult:
    return edit_checkpoint(open_folder(model), plan, out, "base", lambda proof: "card\n")


def load(path: Path) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(path)
    kind = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModelForImageTextToText
    model, loading = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"]
    return model.eval()


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def raw(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The text model's blocks, found without a layout: the first list of as many modules as it has layers."""
    decoder, count = model.get_decoder(), model.config.get_text_config().num_hidden_layers
    return next(list(m) for m in [decoder, *decoder.modules()] if isinstance(m, nn.ModuleList) and len(m) == count)


@contextmanager
def streams(model: PreTrainedModel, cleared: Tensor | None = None) -> Iterator[list[Tensor]]:
    """What leaves every block, in float64; with ``cleared`` nothing of that direction enters the first one."""
    seen: list[Tensor] = []

    def clear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        x = x - (x @ cleared)[..., None] * cleared
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).double())

    blocks = decoder_blocks(model)
    handles = [block.register_forward_hook(keep) for block in blocks]
    if cleared is not None:
        handles.append(blocks[0].register_forward_pre_hook(clear, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def along(model: PreTrainedModel, r: Tensor, clear: bool) -> list[float]:
    """After each block, the largest part of the stream that lies along r."""
    r = r / r.norm()
    with streams(model, r if clear else None) as seen:
        model(input_ids=IDS, use_cache=False)
    return [float((s @ r.double()).abs().max() / s.norm(dim=-1).max()) for s in seen]


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits.double()


def assert_exact(base: Path, out: Path, plan: Edit, r: Tensor) -> None:
    """No block of the edited model writes along r, and its logits are those of the base with hooks."""
    folder = open_folder(base)
    model, edited = load(base), load(out)
    assert min(along(model, r, clear=True)) > 1e-3
    assert max(along(edited, r, clear=plan.embedding == "skip")) <= 1e-5
    with ablated(InMemory(folder, model), plan):
        wanted = logits(model)
    got = logits(edited)
    assert float((got - wanted).norm() / wanted.norm()) <= 1e-4


def assert_only_the_proven_changed(base: Path, out: Path, result: EditResult) -> set[str]:
    before, after = tensors(base), tensors(out)
    proven = {tensor.name for tensor in result.proof.tensors}
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(raw(before[name]), raw(after[name]))}
    assert changed == proven
    return proven


def policy(case: Case, tied: bool) -> str:
    return "skip" if tied or case.model_type == "bloom" else "edit"


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_every_family_is_edited_exactly_whole_and_in_shards(tmp_path: Path, case: Case) -> None:
    r, model = random_direction(), small(case)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    plan = edit_from_direction(r, case.blocks, policy="skip" if case.model_type == "bloom" else "edit")
    result = edit(tmp_path / "whole", plan, tmp_path / "whole-out")
    proven = assert_only_the_proven_changed(tmp_path / "whole", tmp_path / "whole-out", result)
    assert all(any(f".{part}" in name for name in proven) for part in case.parts)
    assert result.proof.not_edited == ((f"{BLOOM}: a norm stands behind it",) if case.model_type == "bloom" else ())
    assert result.proof.worst.error <= 1e-6
    edit(tmp_path / "shards", plan, tmp_path / "shards-out")
    one, other = tensors(tmp_path / "whole-out"), tensors(tmp_path / "shards-out")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert_exact(tmp_path / "whole", tmp_path / "shards-out", plan, r)


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_every_other_type_of_the_table_is_edited_exactly(tmp_path: Path, case: Case) -> None:
    assert_edited_exactly(tmp_path, case, tied=False)


@pytest.mark.parametrize("case", TIED, ids=str)
def test_a_tied_embedding_is_left_alone_and_the_rest_is_exact(tmp_path: Path, case: Case) -> None:
    assert_edited_exactly(tmp_path, case, tied=True)


@pytest.mark.parametrize(("case", "stripped"), [*((case, False) for case in TIED), (Case("gpt2"), True)], ids=str)
def test_an_embedding_that_is_untied_is_edited_and_the_unembedding_keeps_its_weights(tmp_path: Path, case: Case, stripped: bool) -> None:
    small(case, tied=True).save_pretrained(tmp_path / "base")
    if stripped:
        rewrite(tmp_path / "base", strip)
    plan = edit_from_direction(random_direction(), case.blocks, policy="untie", tied=True)
    assert edit(tmp_path / "base", plan, tmp_path / "out").proof.not_edited == ()
    assert_exact(tmp_path / "base", tmp_path / "out", plan, random_direction())
    kept = load(tmp_path / "base").get_output_embeddings().weight
    assert torch.equal(load(tmp_path / "out").get_output_embeddings().weight, kept)


def assert_edited_exactly(place: Path, case: Case, tied: bool) -> None:
    small(case, tied).save_pretrained(place / "base")
    plan = edit_from_direction(random_direction(), case.blocks, tied=tied)
    assert plan.embedding == ("skip" if tied else "edit")
    result = edit(place / "base", plan, place / "out")
    assert_only_the_proven_changed(place / "base", place / "out", result)
    assert {reason.partition(": ")[2] for reason in result.proof.not_edited} == ({"it is tied to the unembedding"} if tied else set())
    assert_exact(place / "base", place / "out", plan, random_direction())


@pytest.mark.parametrize(("case", "projector"), VISION, ids=lambda value: str(value) if isinstance(value, Case) else "vision")
def test_the_text_tower_of_a_vision_language_model_is_edited_and_its_vision_stays(tmp_path: Path, case: Case, projector: set[str]) -> None:
    small(case, text=False).save_pretrained(tmp_path / "base")
    plan = edit_from_direction(random_direction(), case.blocks, policy="edit")
    result = edit(tmp_path / "base", plan, tmp_path / "out")
    changed = assert_only_the_proven_changed(tmp_path / "base", tmp_path / "out", result)
    assert {name for name in changed if SEEING.search(name)} == projector
    assert any(SEEING.search(name) for name in tensors(tmp_path / "base").keys() - changed)
    assert result.proof.not_edited == ()
    assert_exact(tmp_path / "base", tmp_path / "out", plan, random_direction())


def test_vision_language_models_keep_their_projector_where_the_embedding_is_skipped(tmp_path: Path) -> None:
    small(Case("gemma3"), text=False).save_pretrained(tmp_path / "base")
    plan = edit_from_direction(random_direction(), 2, policy="skip")
    changed = assert_only_the_proven_changed(tmp_path / "base", tmp_path / "out", edit(tmp_path / "base", plan, tmp_path / "out"))
    assert all(".layers." in name and not SEEING.search(name) for name in changed)
    assert_exact(tmp_path / "base", tmp_path / "out", plan, random_direction())


def add_deepseek_mtp(stored: dict[str, Tensor]) -> None:
    """A block behind the last, as DeepSeek-V3 and GLM-4.5 store it."""
    for name in [name for name in stored if name.startswith("model.layers.3.")]:
        stored[name.replace("layers.3.", "layers.4.")] = torch.randn_like(stored[name])
    behind = {"enorm.weight": (64,), "hnorm.weight": (64,), "shared_head.norm.weight": (64,), "shared_head.head.weight": (96, 64)}
    for name, shape in {"eh_proj.weight": (64, 128), "embed_tokens.weight": (96, 64), **behind}.items():
        stored[f"model.layers.4.{name}"] = torch.randn(*shape)


def add_qwen_mtp(stored: dict[str, Tensor]) -> None:
    for name in [name for name in stored if name.startswith("model.layers.3.")]:
        stored[name.replace("model.layers.3.", "mtp.layers.0.")] = torch.randn_like(stored[name])
    for name, shape in {"fc": (64, 128), "norm": (64,), "pre_fc_norm_embedding": (64,), "pre_fc_norm_hidden": (64,)}.items():
        stored[f"mtp.{name}.weight"] = torch.randn(*shape)


def add_ernie_mtp(stored: dict[str, Tensor]) -> None:
    for name in [name for name in stored if name.startswith("model.layers.0.")]:
        stored[name.replace("layers.0.", "mtp_block.0.")] = torch.randn_like(stored[name])
    for name, shape in {"linear_proj": (64, 128), "emb_norm": (64,), "hidden_norm": (64,)}.items():
        stored[f"model.mtp_{name}.0.weight"] = torch.randn(*shape)


EXPERTS = {f"mlp.experts.{n}.down_proj" for n in range(4)}
MTP = [
    ("deepseek_v3", add_deepseek_mtp, "model.layers.4.", {"eh_proj", "self_attn.o_proj", "mlp.shared_experts.down_proj", *EXPERTS}),
    ("glm4_moe", add_deepseek_mtp, "model.layers.4.", {"eh_proj", "self_attn.o_proj", "mlp.shared_experts.down_proj", *EXPERTS}),
    ("qwen3_next", add_qwen_mtp, "mtp.", {"fc", *(f"layers.0.{w}" for w in ("self_attn.o_proj", "mlp.shared_expert.down_proj", *EXPERTS))}),
    ("ernie4_5_moe", add_ernie_mtp, "model.mtp_", {"linear_proj.0", "block.0.self_attn.o_proj", "block.0.mlp.down_proj"}),
]


def rewrite(folder: Path, change: Change) -> None:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("model_type", "add", "prefix", "writers"), MTP, ids=[row[0] for row in MTP])
def test_blocks_that_predict_further_tokens_are_edited_and_measured(
    tmp_path: Path, model_type: str, add: Change, prefix: str, writers: set[str]
) -> None:
    small(Case(model_type, blocks=4)).save_pretrained(tmp_path / "base")
    rewrite(tmp_path / "base", add)
    r = random_direction()
    plan = edit_from_direction(r, 4, policy="edit")
    result = edit(tmp_path / "base", plan, tmp_path / "out")
    changed = assert_only_the_proven_changed(tmp_path / "base", tmp_path / "out", result)
    behind = {name for name in changed if name.startswith(prefix) and "embed_tokens" not in name}
    assert behind == {f"{prefix}{writer}.weight" for writer in writers}
    kinds = {tensor.name: tensor.kind for tensor in result.proof.tensors}
    assert {kinds[name] for name in behind} == {"mtp"}
    after = tensors(tmp_path / "out")
    assert all(float((r @ after[name]).norm() / after[name].norm()) < 1e-5 for name in behind)
    if model_type in ("deepseek_v3", "glm4_moe"):
        assert float((after["model.layers.4.embed_tokens.weight"] @ r).abs().max()) < 1e-5
    assert_exact(tmp_path / "base", tmp_path / "out", plan, r)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("deepseek_v3", "model.layers.4.mystery_proj.weight"),
        ("deepseek_v3", "model.layers.2.self_attn.extra_proj.weight"),
        ("deepseek_v3", "mtp.fc.weight"),
        ("qwen3_next", "mtp.mystery.weight"),
        ("qwen3_next", "mtp.layers.0.mystery.weight"),
        ("llama", "model.layers.2.eh_proj.weight"),
        ("llama", "model.adapter.weight"),
        ("llama", "model.layers.1.mlp.down_proj.lora_A.weight"),
    ],
)
def test_a_tensor_that_nothing_explains_is_refused(tmp_path: Path, model_type: str, name: str) -> None:
    small(Case(model_type, blocks=2 if model_type == "llama" else 4)).save_pretrained(tmp_path / "base")
    rewrite(tmp_path / "base", lambda stored: stored.update({name: torch.randn(64, 64)}))
    layers = open_folder(tmp_path / "base").layers
    with pytest.raises(InputError, match=re.escape(name)):
        edit(tmp_path / "base", edit_from_direction(random_direction(), layers), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_kimi_k2_is_deepseek_v3_under_another_name(tmp_path: Path) -> None:
    def renamed(folder: Path, model_type: str) -> None:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}), encoding="utf-8")

    small(Case("deepseek_v3", blocks=4)).save_pretrained(tmp_path / "base")
    renamed(tmp_path / "base", "kimi_k2")
    plan = edit_from_direction(random_direction(), 4, policy="edit")
    result = edit(tmp_path / "base", plan, tmp_path / "out")
    assert result.proof.self_check and result.proof.self_check.architecture == "kimi_k2"
    assert_only_the_proven_changed(tmp_path / "base", tmp_path / "out", result)
    for folder in ("base", "out"):
        renamed(tmp_path / folder, "deepseek_v3")
    assert_exact(tmp_path / "base", tmp_path / "out", plan, random_direction())


def strip(stored: dict[str, Tensor]) -> None:
    """Names as the first checkpoints of GPT-2 and BLOOM have them, with a buffer of GPT-2's."""
    for name in list(stored):
        stored[name.removeprefix("transformer.")] = stored.pop(name)
    if "wpe.weight" in stored:
        stored["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)


@pytest.mark.parametrize(("model_type", "policy"), [("gpt2", "edit"), ("bloom", "skip")])
def test_the_first_checkpoints_of_gpt2_and_bloom_have_no_prefix(tmp_path: Path, model_type: str, policy: Any) -> None:
    small(Case(model_type)).save_pretrained(tmp_path / "base")
    rewrite(tmp_path / "base", strip)
    plan = edit_from_direction(random_direction(), 2, policy=policy)
    changed = assert_only_the_proven_changed(tmp_path / "base", tmp_path / "out", edit(tmp_path / "base", plan, tmp_path / "out"))
    assert {"wte.weight", "wpe.weight"} <= changed or model_type == "bloom"
    assert_exact(tmp_path / "base", tmp_path / "out", plan, random_direction())


def test_experts_in_one_tensor_are_edited_like_single_ones(tmp_path: Path) -> None:
    model, plan = small(Case("qwen3_5_moe_text", blocks=4)), edit_from_direction(random_direction(), 4, policy="edit")
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    for form in ("single", "fused"):
        result = edit(tmp_path / form, plan, tmp_path / f"{form}-out")
        changed = assert_only_the_proven_changed(tmp_path / form, tmp_path / f"{form}-out", result)
        assert ("model.layers.0.mlp.experts.down_proj" in changed) == (form == "fused")
    assert_exact(tmp_path / "fused", tmp_path / "fused-out", plan, random_direction())
    ours, theirs = logits(load(tmp_path / "fused-out")), logits(load(tmp_path / "single-out"))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("model_type", HELD_OUT)
def test_an_architecture_that_the_table_does_not_know_is_exact_or_refused(tmp_path: Path, model_type: str) -> None:
    """Nothing but an InputError, and never an edit that is not exact."""
    small(Case(model_type, blocks=4)).save_pretrained(tmp_path / "base")
    try:
        folder = open_folder(tmp_path / "base")
        plan = edit_from_direction(random_direction(), folder.layers, policy="edit")
        result = edit(tmp_path / "base", plan, tmp_path / "out")
    except InputError as error:
        assert "\n" not in str(error) and model_type not in EXACT
        assert not (tmp_path / "out").exists()
        return
    assert model_type in EXACT
    assert_only_the_proven_changed(tmp_path / "base", tmp_path / "out", result)
    assert_exact(tmp_path / "base", tmp_path / "out", plan, random_direction())


def test_an_architecture_whose_residual_follows_a_norm_is_refused_with_the_reason(tmp_path: Path) -> None:
    small(Case("minimax")).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="residual is taken after a norm"):
        open_folder(tmp_path / "base")
