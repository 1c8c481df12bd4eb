"""A model that is read block by block gives what the whole model gives, on every family, and keeps to its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, save_tiny
from families import FAMILIES, OTHERS, Case, small
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.utils import logging

from abliterate.compute.blockwise.blocks import Blocks
from abliterate.compute.blockwise.sweep import Abilities
from abliterate.compute.blockwise.swept import MAX_NEW_TOKENS, Swept
from abliterate.compute.blockwise.trial import abilities_of
from abliterate.compute.hooks import ablated, added
from abliterate.compute.passes import NOTHING, Change, Pass
from abliterate.compute.prefix import shared_prefix
from abliterate.compute.whole.resident import Resident, load_model
from abliterate.errors import InputError
from abliterate.model.chat.ends import advice_of, end_ids
from abliterate.model.chat.template import load_tokenizer
from abliterate.model.edit import plan_from_direction
from abliterate.model.folder import open_folder
from abliterate.model.index import ShardIndex, open_index

PROMPTS = [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 11, 12, 13, 14, 15], [5, 6, 7, 8, 3], [5, 6, 7, 8, 20, 21, 22, 23, 24]]
REACH = 3
CPU = torch.device("cpu")


def open_swept(path: Path, abilities: Abilities | None = None, **options: object) -> Swept:
    """Read block by block, however much memory there is."""
    folder = open_folder(path)
    blocks = Blocks(folder, open_index(path), torch.float32, CPU, whole_head=bool(options.pop("whole_head", True)))
    tokenizer = load_tokenizer(path)
    model = Swept(folder, blocks.module, tokenizer, blocks, abilities or abilities_of(folder), end_ids(advice_of(folder), tokenizer))
    return replace(model, **options)  # type: ignore[arg-type]


def open_alike(path: Path) -> Swept:
    """Read block by block, with what was found once of a model of the same kind."""
    kind = open_folder(path).model_type
    if kind not in _KNOWN:
        _KNOWN[kind] = abilities_of(open_folder(path))
    return open_swept(path, _KNOWN[kind])


_KNOWN: dict[str, Abilities] = {}


def streams(model: Swept | Resident, passes: Sequence[Pass]) -> list[Tensor]:
    """A pass's streams, [prompt, index, position, d_model]."""
    shape = (model.folder.layers + 1, REACH, model.folder.d_model)
    found = [torch.full((len(asked.sequences), *shape), torch.nan) for asked in passes]

    def seen(number: int, indices: Sequence[int], index: int, stream: Tensor) -> None:
        found[number][list(indices), index] = stream

    model.watch(passes, REACH, seen)
    return found


def last_logits(model: Swept | Resident, passes: Sequence[Pass]) -> list[Tensor]:
    """A pass's logits at the positions kept, [prompt, kept, vocabulary]."""
    found: list[dict[int, Tensor]] = [{} for _ in passes]
    for number, indices, rows in model.logits(passes):
        found[number] |= dict(zip(indices, rows, strict=True))
    return [torch.stack([rows[i] for i in sorted(rows)]) for rows in found]


def replies(model: Swept | Resident, passes: Sequence[Pass], tokens: int) -> list[list[list[int]]]:
    found: list[dict[int, list[int]]] = [{} for _ in passes]
    for number, indices, made in model.replies(passes, tokens):
        found[number] |= dict(zip(indices, made, strict=True))
    return [[rows[i] for i in sorted(rows)] for rows in found]


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
    model = open_swept(tmp_path, tokens=30)
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
def whole(folder: Path) -> Resident:
    return load_model(folder, "float32", "cpu")


ABILITIES = [
    Abilities(0), Abilities(0, cached=True), Abilities(0, cached=True, shared=True), Abilities(0, padded=False, cached=True, shared=True),
]  # fmt: skip


def changes(d_model: int = 32) -> list[Change]:
    r = torch.randn(d_model, generator=torch.Generator().manual_seed(3))
    s = torch.randn(d_model, generator=torch.Generator().manual_seed(4))
    edit, skip = plan_from_direction(r, 4, policy="edit"), plan_from_direction(s, 4, 0.7, policy="skip")
    return [NOTHING, Change(edit), Change(skip), Change(shift=5 * s, shift_layer=1)]


@pytest.mark.parametrize("abilities", ABILITIES, ids=str)
def test_several_changes_in_one_sweep_are_each_as_in_a_pass_of_its_own(folder: Path, whole: Resident, abilities: Abilities) -> None:
    model, passes = open_swept(folder, abilities, tokens=24), [Pass(PROMPTS, change, kept=2) for change in changes()]
    for found, asked in zip(streams(model, passes), passes, strict=True):
        torch.testing.assert_close(found, streams(whole, [asked])[0], atol=1e-4, rtol=1e-4)
    for found, asked in zip(last_logits(model, passes), passes, strict=True):
        torch.testing.assert_close(found, last_logits(whole, [asked])[0], atol=1e-4, rtol=1e-4)
    assert replies(model, passes, 5) == [replies(whole, [asked], 5)[0] for asked in passes]
    assert len({str(reply) for reply in replies(model, passes, 5)}) == len(passes)


def test_hooks_placed_from_outside_hold_in_a_sweep_too(folder: Path, whole: Resident) -> None:
    model = open_swept(folder)
    for change in changes()[1:]:
        for context in [ablated(m, change.plan) for m in (model, whole)] if change.plan else []:
            with context:
                pass
    shift = changes()[3].shift
    assert shift is not None
    with added(model, 1, shift), added(whole, 1, shift):
        torch.testing.assert_close(last_logits(model, [Pass(PROMPTS)])[0], last_logits(whole, [Pass(PROMPTS)])[0], atol=1e-4, rtol=1e-4)


def test_nothing_of_the_blocks_stays_in_memory_after_a_sweep(folder: Path) -> None:
    model = open_swept(folder)
    streams(model, [Pass(PROMPTS)])
    last_logits(model, [Pass(PROMPTS)])
    for layer in range(4):
        assert all(p.is_meta for p in model.blocks.block(layer).parameters())
    head = model.module.get_output_embeddings()
    assert isinstance(head, nn.Linear) and (head.weight.is_meta or model.folder.tied)


def test_at_most_two_blocks_are_in_memory_at_once(folder: Path) -> None:
    model = open_swept(folder)
    most = 0

    def seen(number: int, indices: Sequence[int], index: int, stream: Tensor) -> None:
        nonlocal most
        filled = [layer for layer in range(4) if any(not p.is_meta for p in model.blocks.block(layer).parameters())]
        most = max(most, len(filled))

    model.watch([Pass(PROMPTS)], 1, seen)
    assert 1 <= most <= 2


def test_a_sweep_reads_every_block_once_whatever_the_number_of_passes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_swept(folder)
    read: list[str] = []
    plain_read = ShardIndex.read
    monkeypatch.setattr(ShardIndex, "read", lambda self, name, into=None: (read.append(name), plain_read(self, name, into))[1])
    streams(model, [Pass(PROMPTS, change) for change in changes()])
    blocks = [name for name in read if ".layers." in name]
    assert len(blocks) == len(set(blocks)) > 0


def test_of_the_embedding_only_the_rows_in_use_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_swept(folder)
    rows: list[int] = []
    plain_rows = ShardIndex.read_rows
    monkeypatch.setattr(
        type(model.blocks.index), "read_rows", lambda self, name, asked: (rows.extend(asked), plain_rows(self, name, asked))[1]
    )
    streams(model, [Pass(PROMPTS)])
    streams(model, [Pass(PROMPTS)])
    assert set(rows) - {model.tokenizer.pad_token_id} == {token for prompt in PROMPTS for token in prompt} and len(rows) == len(set(rows))


def test_the_unembedding_read_piece_by_piece_gives_the_same_logits(folder: Path, whole: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abliterate.compute.blockwise.blocks.HEAD_ROWS", 7)
    model = open_swept(folder, whole_head=False)
    torch.testing.assert_close(last_logits(model, [Pass(PROMPTS)])[0], last_logits(whole, [Pass(PROMPTS)])[0], atol=1e-4, rtol=1e-4)


def test_streams_beyond_their_room_live_in_files_and_are_the_same(folder: Path, whole: Resident, tmp_path: Path) -> None:
    model = open_swept(folder, spill_bytes=0, spill_folder=tmp_path)
    torch.testing.assert_close(streams(model, [Pass(PROMPTS)])[0], streams(whole, [Pass(PROMPTS)])[0], atol=1e-4, rtol=1e-4)
    assert list(tmp_path.iterdir()) == []


def test_replies_end_at_end_tokens_and_are_short(folder: Path, whole: Resident) -> None:
    model = open_swept(folder)
    free = replies(model, [Pass(PROMPTS)], 6)[0]
    assert free == replies(whole, [Pass(PROMPTS)], 6)[0]
    ended = replace(model, ends=frozenset({free[0][2]}))
    assert replies(ended, [Pass(PROMPTS)], 6)[0] == [r[: r.index(free[0][2])] if free[0][2] in r else r for r in free]
    assert max(map(len, replies(model, [Pass(PROMPTS)], 100)[0])) <= MAX_NEW_TOKENS


def test_progress_tells_of_every_prompt_once(folder: Path) -> None:
    told: list[float] = []
    model = open_swept(folder)
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
        streams(open_swept(tmp_path), [Pass(PROMPTS)])


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
