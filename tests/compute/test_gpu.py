"""On a GPU: a sweep copies blocks while it computes, and gives what the CPU gives. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blockwise import PROMPTS, interventions, last_logits, replies, streams
from conftest import save_tiny

from abliterate.compute.blockwise.blocks import Blocks
from abliterate.compute.blockwise.model import BlockwiseModel
from abliterate.compute.blockwise.trial import abilities_of
from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import load_model
from abliterate.model.chat.ends import advice_of, end_ids
from abliterate.model.chat.template import load_tokenizer
from abliterate.model.folder import open_folder
from abliterate.model.index import open_index

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module", params=["llama", "qwen2", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("gpu"), request.param, shards="20KB")


def on_gpu(path: Path) -> BlockwiseModel:
    folder, tokenizer = open_folder(path), load_tokenizer(path)
    blocks = Blocks(folder, open_index(path), torch.float32, torch.device("cuda", 0))
    return BlockwiseModel(folder, blocks.module, tokenizer, blocks, abilities_of(folder), end_ids(advice_of(folder), tokenizer), tokens=24)


def test_a_sweep_on_a_gpu_gives_what_the_cpu_gives(folder: Path) -> None:
    passes, whole = [Pass(PROMPTS, intervention, kept=2) for intervention in interventions()], load_model(folder, "float32", "cpu")
    for _ in range(3):  # memory that was let go of is used again
        model = on_gpu(folder)
        for found, expected in zip(streams(model, passes), streams(whole, passes), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        for found, expected in zip(last_logits(model, passes), last_logits(whole, passes), strict=True):
            torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
        assert replies(model, passes, 5) == replies(whole, passes, 5)


def test_a_resident_model_on_a_gpu_gives_what_the_cpu_gives(folder: Path) -> None:
    whole, model = load_model(folder, "float32", "cpu"), load_model(folder, "float32", "cuda")
    for found, expected in zip(streams(model, [Pass(PROMPTS)]), streams(whole, [Pass(PROMPTS)]), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert replies(model, [Pass(PROMPTS)], 5) == replies(whole, [Pass(PROMPTS)], 5)
