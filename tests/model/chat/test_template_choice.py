"""Which of the templates in a folder is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import CHATML, byte_tokenizer

from abliterate.errors import InputError
from abliterate.model.chat.template import encode, load_tokenizer
from abliterate.model.chat.thinking import opens_thought

THINKING = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


def folder_with(path: Path, config: object = None, files: Mapping[str, str] | None = None) -> Path:
    """A tokenizer without a template of its own but ``config`` (in its tokenizer_config.json), and files beside it."""
    byte_tokenizer(None).save_pretrained(path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": config}))
    for name, text in (files or {}).items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    return path


def marked(name: str) -> str:
    return CHATML + name


def used(path: Path) -> str:
    """The end that ``marked`` gave the template in use."""
    tokenizer = load_tokenizer(path)
    return str(tokenizer.decode(encode(tokenizer, ["x"])[0])).rpartition("\n")[2]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("tool_use", "default", "chat"), "default"),
        (("tool_use",), "tool_use"),
        (("rag", "tool_use", "plain"), "plain"),
        (("plain", "chat", "tools-chat"), "chat"),
        (("vicuna", "Instruct-v2"), "Instruct-v2"),
        (("chat_short", "chat_long", "instruct"), "instruct"),
    ],
)
@pytest.mark.parametrize("as_list", [True, False])
def test_one_of_several_templates_is_chosen_by_its_name_and_said(
    tmp_path: Path, names: tuple[str, ...], chosen: str, as_list: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"chat_template.json": json.dumps({"chat_template": {n: marked(n) for n in names}})}
    several = folder_with(tmp_path, [{"name": n, "template": marked(n)} for n in names]) if as_list else folder_with(tmp_path, None, files)
    assert used(several) == chosen
    said = capsys.readouterr().err
    assert said == "" if chosen == "default" else said.count("\n") == 1 and f"is named default; {chosen!r} is used" in said
    assert used(several) == chosen and capsys.readouterr().err == ""  # once is enough


@pytest.mark.parametrize("names", [("tool_use", "rag"), ("vicuna", "alpaca"), ("chat_a", "chat_b")])
def test_where_no_name_tells_they_are_listed(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=f"has the chat templates {', '.join(sorted(names))}, and none is named default") as refused:
        load_tokenizer(folder_with(tmp_path, [{"name": n, "template": CHATML} for n in names]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("names", [("chat", "tool_use"), ("default", "tool_use")])
def test_of_several_templates_too_the_thought_is_left_out(tmp_path: Path, names: tuple[str, ...]) -> None:
    path = folder_with(tmp_path, [{"name": n, "template": THINKING} for n in names])
    assert opens_thought(load_tokenizer(path))
    tokenizer = load_tokenizer(path, thinks=False)
    assert str(tokenizer.decode(encode(tokenizer, ["x"])[0])).endswith("<think>\n\n</think>\n\n")


def test_templates_in_the_additional_folder_alone_are_chosen_from(tmp_path: Path) -> None:
    files = {f"additional_chat_templates/{name}.jinja": marked(name) for name in ("tool_use", "chat")}
    assert used(folder_with(tmp_path, None, files)) == "chat"


@pytest.mark.parametrize(
    ("config", "files", "expected"),
    [
        (None, ("chat_template.json",), "chat_template.json"),
        (None, ("processor_config.json",), "processor_config.json"),
        (None, ("processor_config.json", "chat_template.json"), "chat_template.json"),
        ("own", ("chat_template.json",), "own"),
        ("own", ("chat_template.json", "chat_template.jinja"), "chat_template.jinja"),
    ],
)
def test_a_processors_template_serves_where_the_tokenizer_has_none(
    tmp_path: Path, config: str | None, files: tuple[str, ...], expected: str
) -> None:
    contents = {f: marked(f) if f.endswith("jinja") else json.dumps({"chat_template": marked(f)}) for f in files}
    assert used(folder_with(tmp_path, config and marked(config), contents)) == expected


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "chat_template.json: not JSON"), ("[]", "no chat template"), ('{"other": 1}', "no chat template")]
)
def test_a_processors_file_that_holds_none_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as refused:
        load_tokenizer(folder_with(tmp_path, None, {"chat_template.json": text}))
    assert "\n" not in str(refused.value)
