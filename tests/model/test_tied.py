"""Whether token embedding and unembedding are one matrix is decided once, from what is stored, as transformers takes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from blockwise import PROMPTS, last_logits, open_blockwise
from conftest import save_tiny
from families import VISION, Case, small
from packed import set_config, store, tensors_of

from abliterate.compute.load import from_pretrained
from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import load_model
from abliterate.model.folder import open_folder
from abliterate.model.tensor_names import text_name

Tiny = Callable[..., Path]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WHOLE = {str(case): case for case, _ in VISION}


def head_stored(folder: Path, stored: str, shard: Callable[[str], str] | None = None) -> Path:
    """``stored``: "alone" leaves the embedding, "equal" and "other" put an unembedding beside it."""
    tensors = tensors_of(folder)
    embedding = next(tensor for name, tensor in tensors.items() if text_name(name) == EMBEDDING)
    head = next((name for name in tensors if text_name(name) == HEAD), HEAD)
    tensors.pop(head, None)
    if stored != "alone":
        tensors[head] = embedding.clone() if stored == "equal" else embedding.flip(0).contiguous()
    store(folder, tensors, shard)
    return folder


def tied_in_memory(folder: Path) -> bool:
    module, _ = from_pretrained(open_folder(folder), torch.float32)
    return module.get_output_embeddings().weight is module.get_input_embeddings().weight


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("stored", ["alone", "equal", "other"])
def test_what_is_stored_decides_and_the_config_where_it_says_nothing(tiny: Tiny, flag: bool, stored: str) -> None:
    folder = head_stored(tiny(), stored)
    set_config(folder, tie_word_embeddings=flag)
    found = open_folder(folder)
    assert (found.tied, found.says_tied) == (flag and stored != "other", flag)
    assert found.config.tie_word_embeddings is found.tied  # so that what is built of it is tied as the model is
    assert tied_in_memory(folder) == found.tied


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("model_type", ["mistral3", "gemma3", "qwen3_5"])
@pytest.mark.parametrize("stored", ["equal", "other"])
def test_a_flag_in_the_text_config_is_taken_as_transformers_takes_it(
    tmp_path: Path, model_type: str, stored: str, flags: tuple[bool, bool]
) -> None:
    small(WHOLE[model_type], text=False).save_pretrained(tmp_path)
    head_stored(tmp_path, stored)
    whole = open_folder(tmp_path).config.to_dict()
    set_config(tmp_path, tie_word_embeddings=flags[0], text_config={**whole, "tie_word_embeddings": flags[1]})
    assert open_folder(tmp_path).tied == tied_in_memory(tmp_path)


@pytest.mark.parametrize("case", [case for case, _ in VISION], ids=str)
def test_a_vision_language_model_is_loaded_whole_whatever_its_text_part_is_called(tmp_path: Path, case: Case) -> None:
    small(case, text=False).save_pretrained(tmp_path)
    module, info = from_pretrained(open_folder(tmp_path), torch.float32)
    assert not info["missing_keys"] and module.get_output_embeddings() is not None


def test_two_heads_in_two_shards_are_two(tiny: Tiny) -> None:
    folder = head_stored(tiny(tied=True), "other", lambda name: f"model-0000{1 + (name == HEAD)}-of-00002.safetensors")
    assert not open_folder(folder).tied


def test_an_unembedding_of_another_type_is_another_matrix(tiny: Tiny) -> None:
    folder = tiny(tied=True)
    tensors = tensors_of(folder)
    store(folder, {**tensors, HEAD: tensors[EMBEDDING].half()})
    assert not open_folder(folder).tied


def test_a_matrix_that_differs_in_its_last_byte_is_another(tiny: Tiny) -> None:
    folder = tiny(tied=True)
    tensors = tensors_of(folder)
    store(folder, {**tensors, HEAD: tensors[EMBEDDING].clone().index_put_((torch.tensor(-1), torch.tensor(-1)), torch.tensor(7.0))})
    assert not open_folder(folder).tied
    store(folder, {**tensors, HEAD: tensors[EMBEDDING].clone()})
    assert open_folder(folder).tied  # what was seen before the shard changed is not remembered


def test_a_folder_without_weights_is_tied_as_its_config_says(tiny: Tiny) -> None:
    folder = tiny(tied=True)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    assert open_folder(folder).tied


@pytest.mark.parametrize("stored", ["alone", "equal", "other"])
def test_a_tied_config_computes_the_same_whole_and_block_by_block(tmp_path: Path, stored: str) -> None:
    folder = head_stored(save_tiny(tmp_path / "m", tied=True), stored)
    asked = [Pass(PROMPTS, kept=2)]
    (whole,), (swept,) = (last_logits(model, asked) for model in (load_model(folder, "float32", "cpu"), open_blockwise(folder)))
    torch.testing.assert_close(swept, whole, rtol=1e-4, atol=1e-4)
