"""A matrix that lies column by column is the same matrix; what is read by rows stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from abliterate.compute.whole.model import load_model
from abliterate.compute.whole.strides import lie_by_columns


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_computes_the_same_by_columns(tiny: Callable[..., Path], tied: bool) -> None:
    folder, ids = tiny(tied=tied), torch.arange(3, 60)[None]
    plain, model = AutoModelForCausalLM.from_pretrained(folder), load_model(folder, device="cpu")
    turned = [name for name, p in model.module.named_parameters() if p.ndim == 2 and not p.is_contiguous()]
    assert len(turned) >= 7 * 4 and not any("embed" in name for name in turned)
    assert ("lm_head.weight" in turned) is not tied
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, model.module.get_parameter(name))
    with torch.inference_mode():
        torch.testing.assert_close(model.module(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("out", "dtype", "turned"), [(576, torch.float32, True), (2048, torch.float32, False), (576, torch.bfloat16, False)]
)
def test_columns_a_page_apart_and_other_types_stay(out: int, dtype: torch.dtype, turned: bool) -> None:
    layers = nn.Sequential(nn.Linear(8, out, dtype=dtype))
    lie_by_columns(layers)
    assert layers[0].weight.is_contiguous() is not turned
