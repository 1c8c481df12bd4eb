"""NaN and infinity in what a model computes: refused in one line that says where they begin, however the model is held."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise import open_alike
from held import logits, replies, streams, with_reuse
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from abliterate.cli.main import main
from abliterate.compute.finite import NotFiniteError, check_logits
from abliterate.compute.passes import Intervention, Pass
from abliterate.compute.whole.model import load_model
from abliterate.compute.whole.reuse import Reuse
from abliterate.errors import InputError

Tiny = Callable[..., Path]
PROMPTS = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10, 11, 12], [20, 21]]
NAN, INF = float("nan"), float("inf")
HELD: dict[str, Callable[[Path], Any]] = {
    "whole": lambda folder: load_model(folder, "float32", "cpu"),
    "without our own loop": lambda folder: with_reuse(load_model(folder, "float32", "cpu"), Reuse()),
    "block by block": open_alike,
}
ASKED: dict[str, Callable[[Any], Any]] = {
    "streams": lambda model: streams(model, [Pass(PROMPTS)], 2),
    "logits": lambda model: logits(model, Pass(PROMPTS, kept=2)),
    "replies": lambda model: replies(model, Pass(PROMPTS), 3),
}


def changed(folder: Path, name: str, intervention: Callable[[torch.Tensor], Any]) -> Path:
    """The folder, one of whose tensors is changed on the disk."""
    tensors = load_file(folder / "model.safetensors")
    intervention(tensors[name])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("model.embed_tokens.weight", NAN, "the embedding's output is the first"),
        ("model.layers.1.mlp.up_proj.weight", NAN, "the residual stream after block 1 is the first"),
        ("model.layers.2.self_attn.o_proj.weight", INF, "the residual stream after block 2 is the first"),
        ("lm_head.weight", NAN, "the unembedding is the first"),
    ],
)
def test_where_it_begins_is_named_with_the_damaged_tensor(tiny: Tiny, held: str, asked: str, name: str, value: float, where: str) -> None:
    if name == "lm_head.weight" and asked == "streams":
        return  # which don't reach it
    model = HELD[held](changed(tiny(), name, lambda tensor: tensor.fill_(value)))
    said = refusal(lambda: ASKED[asked](model))
    assert where in said and f"so do its weights ({name})" in said and "--dtype" not in said
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


@pytest.mark.parametrize("held", HELD)
def test_only_tokens_of_the_damaged_row_are_refused(tiny: Tiny, held: str) -> None:
    model = HELD[held](changed(tiny(), "model.embed_tokens.weight", lambda tensor: tensor[100].fill_(NAN)))
    assert len(logits(model, Pass(PROMPTS))) == 3
    assert "embedding's output" in refusal(lambda: logits(model, Pass([*PROMPTS, [7, 100, 8]])))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_wider_type_is_advised_where_there_is_one_and_the_weights_are_finite(tiny: Tiny, dtype: Any) -> None:
    folder = tiny()
    for layer in range(4):
        changed(folder, f"model.layers.{layer}.mlp.down_proj.weight", lambda tensor: tensor.mul_(60000 if dtype == "float16" else 1e38))
    model = load_model(folder, dtype, "cpu")
    said = refusal(lambda: logits(model, Pass(PROMPTS)))
    assert "after block 0 is the first" in said and "its weights are finite" in said
    assert ("float16 is too narrow for it; try --dtype float32" in said) == (dtype == "float16") == ("--dtype" in said)


@pytest.mark.parametrize("held", HELD)
def test_an_edit_that_breaks_the_model_is_left_to_whoever_tries_it_but_never_written_as_a_reply(tiny: Tiny, held: str) -> None:
    model = HELD[held](tiny())
    broken = Intervention(shift=torch.full((32,), INF), shift_layer=1)
    assert not torch.isfinite(logits(model, Pass(PROMPTS, broken))).any()
    said = refusal(lambda: replies(model, Pass(PROMPTS, broken), 2))
    assert "after block 1 is the first to hold NaN or infinite values under an edit" in said
    assert len(replies(model, Pass(PROMPTS), 2)) == 3


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.sampled_from([0.0, 1.5, NAN, INF, -INF]), min_size=3, max_size=3), min_size=2, max_size=2),
        min_size=1,
        max_size=3,
    ),
    st.data(),
)
def test_a_row_is_refused_for_nan_for_infinity_and_for_nothing_but_minus_infinity(
    rows: list[list[list[float]]], data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=len(rows), max_size=len(rows)))
    asked = Pass([[1] * length for length in lengths], kept=2)

    def is_bad(values: list[float]) -> bool:
        return any(value != value or value == INF for value in values) or all(value == -INF for value in values)

    bad = any(is_bad(values) for row, length in zip(rows, lengths, strict=True) for values in row[-min(length, 2) :])
    if bad:
        with pytest.raises(NotFiniteError):
            check_logits(asked, range(len(rows)), torch.tensor(rows))
    else:
        check_logits(asked, range(len(rows)), torch.tensor(rows))


@pytest.mark.parametrize("command", ["audit", "collect", "compare", "chat"])
def test_every_command_refuses_it_in_one_line(
    tiny: Tiny, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(changed(tiny(layers=2), "model.layers.1.mlp.up_proj.weight", lambda tensor: tensor[0].fill_(NAN)))
    asked, plain = tmp_path / "asked.txt", tmp_path / "plain.txt"
    asked.write_text("How is bread made?\nName three rivers.\nWhy do leaves fall?\nWhat is tin?\n")
    plain.write_text("Sing a song.\nTell a tale.\nDraw a map.\nPlay chess.\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    more = {
        "audit": ["--model", model, "--prompts", str(asked), "--split", "all", "--out", str(tmp_path / "o")],
        "collect": ["--model", model, "--target", str(asked), "--baseline", str(plain), "--out", str(tmp_path / "o.safetensors")],
        "compare": ["--base", model, "--derived", model, "--prompts", str(asked), "--split", "all", "--out", str(tmp_path / "o")],
        "chat": ["--model", model],
    }  # fmt: skip
    code = main([command, *more[command]])
    shown = capsys.readouterr()
    told = shown.out if command == "chat" else shown.err  # a conversation goes on
    assert code == (0 if command == "chat" else 2) and "residual stream after block 1 is the first" in told
    assert "model.layers.1.mlp.up_proj.weight" in told and "Traceback" not in shown.err
