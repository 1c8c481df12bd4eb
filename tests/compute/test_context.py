"""What a model can read: told before any work, by prompt, length and limit, for whatever is asked of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockwise import open_alike
from conftest import byte_tokenizer, save_tiny
from transformers import AutoConfig

import abliterate
from abliterate.cli.main import main
from abliterate.compute.context import Context
from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import load_model
from abliterate.errors import InputError
from abliterate.measures.drift import bundled_prose, texts_of
from abliterate.model.folder import ModelFolder, open_folder
from abliterate.model.layouts import layout_for
from abliterate.prompts import Prompt

Tiny = Callable[..., Path]
LONG = "Who wrote the first almanac of tides, and in which year did it appear?"  # 89 bytes with the template


def context(model_type: str, **options: Any) -> Context:
    config = AutoConfig.for_model(model_type, **options).get_text_config()
    layout = layout_for(config.model_type)
    assert layout is not None
    return Context.of(ModelFolder(Path("m"), model_type, layout, 2, 32, False, config))


def rope(kind: str, factor: float, original: int | None = None) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 1e4, "factor": factor, **({"original_max_position_embeddings": original} if original else {})}


@pytest.mark.parametrize(
    ("model_type", "options", "limit"),
    [
        ("gpt2", {"n_positions": 300}, 300),
        ("llama", {"max_position_embeddings": 4096}, 4096),
        ("llama", {"max_position_embeddings": 4096, "rope_parameters": rope("linear", 4.0)}, 16384),
        ("qwen2", {"max_position_embeddings": 32768, "rope_parameters": rope("yarn", 4.0, 32768)}, 131072),
        ("llama", {"max_position_embeddings": 131072, "rope_parameters": rope("yarn", 4.0, 32768)}, 131072),
        ("bloom", {}, None),
    ],
)
def test_the_limit_is_what_positions_are_learned_of_or_stretched_to(model_type: str, options: dict[str, Any], limit: int | None) -> None:
    found = context(model_type, **options)
    assert (found.limit, found.learned) == (limit, model_type == "gpt2")


def short(tmp_path: Path, family: str, limit: int) -> Path:
    return save_tiny(tmp_path / f"{family}-{limit}", family, layers=2, positions=limit)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("command", "limit", "flags", "told"),
    [
        ("audit", 64, [], "has 89 tokens"),
        ("audit", 100, ["--max-new-tokens", "30"], "has 89 tokens, 119 with a reply of 30"),
        ("compare", 100, ["--max-new-tokens", "30"], "allow at most 11 reply tokens"),
        ("collect", 64, [], "has 89 tokens"),
    ],
)
def test_a_prompt_and_its_reply_are_measured_before_anything_is_done(
    tmp_path: Path, family: str, command: str, limit: int, flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, asked, plain = str(short(tmp_path, family, limit)), tmp_path / "asked.txt", tmp_path / "plain.txt"
    asked.write_text(f"Name three rivers.\n{LONG}\nHow is bread made?\nWhy do leaves fall?\n")
    plain.write_text("Sing.\nTell a tale.\nDraw a map.\nPlay chess.\n")
    out = tmp_path / "out.safetensors"
    models = {"compare": ["--base", model, "--derived", model]}.get(command, ["--model", model])
    sets = ["--target", str(asked), "--baseline", str(plain)] if command == "collect" else ["--prompts", str(asked), "--split", "all"]
    assert main([command, *models, *sets, *flags, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    name = "target" if command == "collect" else "asked"
    assert said.startswith(f"abliterate: {name}: the prompt 'asked-0002' ('Who wrote the first almanac") and said.count("\n") == 1
    assert told in said and f"{limit} positions" in said and not out.exists()


def test_a_run_is_measured_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = short(tmp_path, "gpt2", 64)
    assert main(["run", "--model", str(model), "--limit", "16", "--out", str(tmp_path / "out")]) == 2
    assert "64 positions (n_positions)" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("held", [lambda folder: load_model(folder, "float32", "cpu"), open_alike], ids=["whole", "block by block"])
def test_what_the_model_would_fail_on_is_refused_wherever_it_comes_from(tmp_path: Path, held: Callable[[Path], Any]) -> None:
    model = held(short(tmp_path, "gpt2", 64))
    fitting, long, unknown = [[5] * 60], [[5] * 65], [[5, 259]]
    assert len(list(model.replies([Pass(fitting)], 4)))
    for sequences, further, words in ((fitting, 5, "64 positions"), (long, 1, "64 positions"), (unknown, 1, "has id 259")):
        with pytest.raises(InputError, match=words):
            list(model.replies([Pass(sequences)], further))
    with pytest.raises(InputError, match="64 positions"):
        list(model.logits([Pass(long)]))
    with pytest.raises(InputError, match="64 positions"):
        model.watch([Pass(long)], 1, lambda *seen: None)


def test_a_prompt_of_tokens_that_the_embedding_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer()
    folder = save_tiny(tmp_path / "model", layers=2)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    asked = tmp_path / "asked.txt"
    asked.write_text("Name three rivers.\nWhat is [PAD] for?\n")
    assert main(["audit", "--model", str(folder), "--prompts", str(asked), "--split", "all", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "the prompt 'asked-0002'" in said and "'[PAD]' has id 259" in said and not (tmp_path / "out").exists()


def test_our_own_texts_are_cut_to_fit(tmp_path: Path) -> None:
    folder = open_folder(short(tmp_path, "gpt2", 64))
    tokenizer, prompts = byte_tokenizer(), [[5] * 60, [5] * 64, [5] * 10]
    texts = texts_of(tokenizer, prompts, ["x" * 90] * 3, Context.of(folder))
    assert [len(reply) for reply in texts.replies] == [4, 0, 54]
    assert {len(text) for text in texts.prose} == {64} and len(texts.prose) == len(bundled_prose())


def test_of_prompts_that_nobody_asked_for_those_that_fit_are_taken(tmp_path: Path) -> None:
    found = Context.of(open_folder(short(tmp_path, "gpt2", 64))).readable(byte_tokenizer(), [Prompt("a", "Sing."), Prompt("b", LONG)])
    assert [prompt.id for prompt in found] == ["a"]


def test_a_conversation_says_where_it_is_too_long_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{LONG}\nSing.\n"))
    assert main(["chat", "--model", str(short(tmp_path, "gpt2", 64)), "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert "the conversation has 89 tokens, the model reads 64" in shown and shown.count("(cut at 4 tokens)") == 1


def test_from_python_too(tmp_path: Path) -> None:
    model = abliterate.load_model(short(tmp_path, "llama", 64))
    with pytest.raises(InputError, match=r"the prompt '1' .* was trained on 64 positions"):
        abliterate.generate(model, ["Sing.", LONG], 4)
