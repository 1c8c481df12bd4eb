"""A model that is read block by block gives what the whole model gives, on every family, and keeps to its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from blockwise import PROMPTS, REACH, interventions, last_logits, open_blockwise, replies, streams
from conftest import byte_tokenizer, save_tiny
from families import FAMILIES, OTHERS, Case, small
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from abliterate.compute.blockwise.forward import Abilities
from abliterate.compute.blockwise.model import MAX_NEW_TOKENS
from abliterate.compute.blockwise.trial import abilities_of
from abliterate.compute.hooks import ablated, added
from abliterate.compute.passes import Pass
from abliterate.compute.prefix import shared_prefix
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.errors import InputError
from abliterate.model.folder import open_folder
from abliterate.model.index import ShardIndex

# --- every family, against a plain forward pass of transformers ---


@dataclass
class Plain:
    """What the blocks of a whole model give for each prompt alone: streams of prompt and index, and logits of the last token."""

    streams: list[list[Tensor]]
    logits: list[Tensor]


@torch.no_grad()
def plain(model: PreTrainedModel) -> Plain:
    """The first list of as many modules as the text model has layers is its blocks."""
    decoder, count = model.get_decoder(), model.config.get_text_config().num_hidden_layers
    blocks = next(list(m) for m in [decoder, *decoder.modules()] if isinstance(m, nn.ModuleList) and len(m) == count)
    found = Plain([], [])
    for prompt in PROMPTS:
        seen: list[Tensor] = []
        first = blocks[0].register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        hooks = [first] + [
            block.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out))
            for block in blocks
        ]
        found.logits.append(model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1])
        found.streams.append([s[0] for s in seen])
        for hook in hooks:
            hook.remove()
    return found


@pytest.mark.parametrize("case", [*FAMILIES, *OTHERS], ids=str)
def test_every_family_gives_the_streams_and_logits_of_a_plain_forward_pass(tmp_path: Path, case: Case) -> None:
    logging.disable_progress_bar()
    small(case).save_pretrained(tmp_path, max_shard_size="60KB")
    byte_tokenizer().save_pretrained(tmp_path)
    model = open_blockwise(tmp_path, tokens=30)
    config = AutoConfig.from_pretrained(tmp_path)
    kind = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModelForImageTextToText
    expected = plain(kind.from_pretrained(tmp_path, dtype=torch.float32).eval())
    (found,), (logits,) = streams(model, [Pass(PROMPTS)]), last_logits(model, [Pass(PROMPTS)])
    for prompt, whole in enumerate(expected.streams):
        for index, stream in enumerate(whole):
            wanted = stream[-REACH:] if stream.ndim == 2 else stream[-REACH:].mean(1)  # DeepSeek V4 has several streams
            got = found[prompt, index]
            assert float((got - wanted).norm() / wanted.norm()) < 1e-5
        assert float((logits[prompt, -1] - expected.logits[prompt]).norm() / expected.logits[prompt].norm()) < 1e-5


# --- against the same model in memory ---


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("swept"), request.param, tied=request.param == "qwen2", shards="20KB")


@pytest.fixture(scope="module")
def whole(folder: Path) -> WholeModel:
    return load_model(folder, "float32", "cpu")


ABILITIES = [
    Abilities(0), Abilities(0, cached=True), Abilities(0, cached=True, shared=True), Abilities(0, padded=False, cached=True, shared=True),
]  # fmt: skip


@pytest.mark.parametrize("abilities", ABILITIES, ids=str)
def test_several_changes_in_one_sweep_are_each_as_in_a_pass_of_its_own(folder: Path, whole: WholeModel, abilities: Abilities) -> None:
    model, passes = open_blockwise(folder, abilities, tokens=24), [Pass(PROMPTS, intervention, kept=2) for intervention in interventions()]
    for found, asked in zip(streams(model, passes), passes, strict=True):
        torch.testing.assert_close(found, streams(whole, [asked])[0], atol=1e-4, rtol=1e-4)
    for found, asked in zip(last_logits(model, passes), passes, strict=True):
        torch.testing.assert_close(found, last_logits(whole, [asked])[0], atol=1e-4, rtol=1e-4)
    assert replies(model, passes, 5) == [replies(whole, [asked], 5)[0] for asked in passes]
    assert len({str(reply) for reply in replies(model, passes, 5)}) == len(passes)


def test_hooks_placed_from_outside_hold_in_a_sweep_too(folder: Path, whole: WholeModel) -> None:
    model = open_blockwise(folder)
    for intervention in interventions()[1:]:
        for context in [ablated(m, intervention.edit) for m in (model, whole)] if intervention.edit else []:
            with context:
                pass
    shift = interventions()[3].shift
    assert shift is not None
    with added(model, 1, shift), added(whole, 1, shift):
        torch.testing.assert_close(last_logits(model, [Pass(PROMPTS)])[0], last_logits(whole, [Pass(PROMPTS)])[0], atol=1e-4, rtol=1e-4)


def test_nothing_of_the_blocks_stays_in_memory_after_a_sweep(folder: Path) -> None:
    model = open_blockwise(folder)
    streams(model, [Pass(PROMPTS)])
    last_logits(model, [Pass(PROMPTS)])
    for layer in range(4):
        assert all(p.is_meta for p in model.blocks.block(layer).parameters())
    head = model.module.get_output_embeddings()
    assert isinstance(head, nn.Linear) and (head.weight.is_meta or model.folder.tied)


def test_at_most_two_blocks_are_in_memory_at_once(folder: Path) -> None:
    model = open_blockwise(folder)
    most = 0

    def seen(number: int, indices: Sequence[int], index: int, stream: Tensor) -> None:
        nonlocal most
        filled = [layer for layer in range(4) if any(not p.is_meta for p in model.blocks.block(layer).parameters())]
        most = max(most, len(filled))

    model.watch([Pass(PROMPTS)], 1, seen)
    assert 1 <= most <= 2


def test_a_sweep_reads_every_block_once_whatever_the_number_of_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_blockwise(folder)
    read: list[str] = []
    plain_read = ShardIndex.read
    monkeypatch.setattr(ShardIndex, "read", lambda self, name, into=None: (read.append(name), plain_read(self, name, into))[1])
    streams(model, [Pass(PROMPTS, intervention) for intervention in interventions()])
    blocks = [name for name in read if ".layers." in name]
    assert len(blocks) == len(set(blocks)) > 0


def test_of_the_embedding_only_the_rows_in_use_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_blockwise(folder)
    rows: list[int] = []
    plain_rows = ShardIndex.read_rows
    monkeypatch.setattr(
        type(model.blocks.index), "read_rows", lambda self, name, asked: (rows.extend(asked), plain_rows(self, name, asked))[1]
    )
    streams(model, [Pass(PROMPTS)])
    streams(model, [Pass(PROMPTS)])
    assert set(rows) - {model.tokenizer.pad_token_id} == {token for prompt in PROMPTS for token in prompt} and len(rows) == len(set(rows))


def test_the_unembedding_read_piece_by_piece_gives_the_same_logits(
    folder: Path, whole: WholeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abliterate.compute.blockwise.blocks.HEAD_ROWS", 7)
    model = open_blockwise(folder, whole_head=False)
    torch.testing.assert_close(last_logits(model, [Pass(PROMPTS)])[0], last_logits(whole, [Pass(PROMPTS)])[0], atol=1e-4, rtol=1e-4)


def test_streams_beyond_their_room_live_in_files_and_are_the_same(folder: Path, whole: WholeModel, tmp_path: Path) -> None:
    model = open_blockwise(folder, spill_bytes=0, spill_folder=tmp_path)
    torch.testing.assert_close(streams(model, [Pass(PROMPTS)])[0], streams(whole, [Pass(PROMPTS)])[0], atol=1e-4, rtol=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_replies_end_at_end_tokens_and_are_short(folder: Path, whole: WholeModel) -> None:
    model = open_blockwise(folder)
    free = replies(model, [Pass(PROMPTS)], 6)[0]
    assert free == replies(whole, [Pass(PROMPTS)], 6)[0]
    ended = replace(model, ends=frozenset({free[0][2]}))
    assert replies(ended, [Pass(PROMPTS)], 6)[0] == [r[: r.index(free[0][2])] if free[0][2] in r else r for r in free]
    assert max(map(len, replies(model, [Pass(PROMPTS)], 100)[0])) <= MAX_NEW_TOKENS


def test_progress_tells_of_every_prompt_once(folder: Path) -> None:
    told: list[float] = []
    model = open_blockwise(folder)
    for _ in model.replies([Pass(PROMPTS), Pass(PROMPTS[:2])], 3, told.append):
        pass
    assert sum(told) == pytest.approx(6)
    told.clear()
    model.watch([Pass(PROMPTS)], 1, lambda *_: None, told.append)
    assert sum(told) == pytest.approx(4)


def test_a_block_without_a_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    whole = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    for file in folder.glob("*"):
        if file.suffix != ".safetensors" and "index" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    del whole["model.layers.2.mlp.down_proj.weight"]
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"mlp\.down_proj\.weight' of block 2"):
        streams(open_blockwise(tmp_path), [Pass(PROMPTS)])


def test_an_architecture_whose_blocks_compute_something_else_alone_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from abliterate.compute.blockwise import trial

    monkeypatch.setattr(trial, "_off", lambda model, expected: 0.5)
    trial._tried.cache_clear()
    with pytest.raises(InputError, match="can't be run block by block"):
        abilities_of(open_folder(folder))
    trial._tried.cache_clear()


def test_the_shared_prefix_is_what_all_begin_with() -> None:
    assert shared_prefix(PROMPTS) == 4
    assert shared_prefix([[1, 2], [1, 2]]) == 2
    assert shared_prefix([[1, 2], [1, 2, 3]]) == 2
    assert shared_prefix([[1], [2]]) == 0
