"""What is said reaches the model, whatever form a chat template takes it in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CHATML, byte_tokenizer, save_tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from abliterate.cli.main import main
from abliterate.errors import InputError
from abliterate.model.chat.content import remembers
from abliterate.model.chat.conversation import Message, rendered
from abliterate.model.chat.template import encode, encode_conversations, load_tokenizer, template_positions

PARTS = "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<image>{% endif %}{% endfor %}"
IN_PARTS = CHATML.replace("{{ m['content'] }}", PARTS)
SAID = "{{ m['content'] }}"
TURNS = [
    Message(role="system", content="Be brief."),
    Message(role="user", content="Who are you?"),
    Message(role="assistant", content="A model."),
    Message(role="user", content=' Say "ä"\n  & <b> twice. '),
]


def opened(folder: Path, template: str | None, tokenizer: PreTrainedTokenizerFast | None = None) -> PreTrainedTokenizerBase:
    made = tokenizer or byte_tokenizer(template)
    made.save_pretrained(folder)
    return load_tokenizer(folder)


def refusal(folder: Path, template: str) -> str:
    with pytest.raises(InputError) as refused:
        opened(folder, template)
    assert str(refused.value).startswith(f"{folder}: ") and "\n" not in str(refused.value)
    return str(refused.value)


def test_parts_are_sent_to_a_template_that_takes_parts(tmp_path: Path) -> None:
    as_text, in_parts = opened(tmp_path / "text", CHATML), opened(tmp_path / "parts", IN_PARTS)
    assert encode(in_parts, [TURNS[-1]["content"]]) == encode(as_text, [TURNS[-1]["content"]])
    assert encode_conversations(in_parts, [TURNS]) == encode_conversations(as_text, [TURNS])
    assert template_positions(in_parts) == template_positions(as_text)


@pytest.mark.parametrize(
    "reading",
    [
        "{{ m.content[0].text }}",  # an UndefinedError on texts
        "{{ m['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}",
        "{{ m['content'][0]['text'] + '' }}",
        "{% if m['content'] is string %}{{ raise_exception('parts only') }}{% else %}{{ m['content'][0]['text'] | trim }}{% endif %}",
    ],
)
def test_parts_are_sent_where_a_text_makes_the_template_fail(tmp_path: Path, reading: str) -> None:
    (ids,) = encode(tokenizer := opened(tmp_path, CHATML.replace(SAID, reading)), ["Hello."])
    assert tokenizer.decode(ids) == "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\n"


def test_parts_are_sent_for_the_user_alone_where_only_these_are_read_as_parts(tmp_path: Path) -> None:
    mixed = CHATML.replace(SAID, "{% if m['role'] == 'user' %}" + PARTS + "{% else %}" + SAID + "{% endif %}")
    assert rendered(opened(tmp_path / "m", mixed), TURNS) == rendered(opened(tmp_path / "t", CHATML), TURNS)


@pytest.mark.parametrize("start", ["", "\n", "\n\n", "  ", " \n  ", "x", "{# said #}\n", "  {%- set x = 1 %}\n"])
def test_what_sends_parts_adds_nothing_to_the_text(tmp_path: Path, start: str) -> None:
    as_text, in_parts = opened(tmp_path / "text", start + CHATML), opened(tmp_path / "parts", start + IN_PARTS)
    assert as_text.chat_template == start + CHATML
    assert in_parts.chat_template != start + IN_PARTS
    assert rendered(in_parts, TURNS) == rendered(as_text, TURNS)


@pytest.mark.parametrize("filtered", ["| trim", "| replace('\\n', ' ')", "| lower", "| tojson", "| e"])
def test_a_template_may_trim_and_escape(tmp_path: Path, filtered: str) -> None:
    template = CHATML.replace(SAID, "{{ m['content'] " + filtered + " }}")
    assert opened(tmp_path, template).chat_template == template


@pytest.mark.parametrize(
    "template",
    [
        "hey",
        CHATML.replace(SAID, "{{ m['text'] }}"),
        CHATML.replace(SAID, "{{ m['content'][:20] }}"),
        CHATML.replace(SAID, "{{ m['content'] | truncate }}"),
        CHATML.replace(SAID, "{% if m['content'] is not string %}{{ m['content'] }}{% endif %}"),
        CHATML.replace(SAID, "{% if m['content'] is not string %}{{ m['content'] | tojson }}{% endif %}"),
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role == 'human' %}"),
    ],
)
def test_a_template_that_leaves_out_what_the_user_says_is_refused(tmp_path: Path, template: str) -> None:
    assert "leaves out all or part of what the user says" in refusal(tmp_path, template)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for %}", "Expected an expression"),
        ("{{ messages[5].content.x }}", "undefined|no element 5"),
        ("{{ 1 + 'a' }}", "TypeError: "),
        ("{{ {}.pop('mood') }}", "KeyError: |unsafe"),
        ("{{ 1 // 0 }}", "ZeroDivisionError: "),
        ("{{ strftime_now(3) }}", "TypeError: "),
        ("{{ messages[0].content.index('~') }}", "ValueError: "),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
    ],
)
def test_whatever_a_template_raises_is_one_line(tmp_path: Path, body: str, reason: str) -> None:
    line = refusal(tmp_path, body + CHATML)
    assert "the chat template fails: " in line and any(part in line for part in reason.split("|"))


def test_the_commands_refuse_a_template_that_fails_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(save_tiny(tmp_path / "m", tokenizer=byte_tokenizer("{{ 1 + 'a' }}" + CHATML)))
    (tmp_path / "p.txt").write_text("Why rain?\nWhy snow?\n")
    out = str(tmp_path / "out")
    for call in (
        ["audit", "--model", model, "--prompts", str(tmp_path / "p.txt"), "--out", out],
        ["compare", "--base", model, "--derived", model, "--prompts", str(tmp_path / "p.txt"), "--out", out],
        ["run", "--model", model, "--out", out],
        ["collect", "--model", model, "--target", "harmful", "--limit", "4", "--out", out],
        ["plan", "--model", model],
        ["chat", "--model", model],
    ):
        assert main(call) == 2, call
        assert f"abliterate: {model}: the chat template fails: TypeError: " in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()


def worded(*words: str) -> PreTrainedTokenizerFast:
    """One token a word; the others are unknown."""
    back = Tokenizer(models.WordLevel({w: i for i, w in enumerate(("[UNK]", "<|im_end|>", *words))}, unk_token="[UNK]"))
    back.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=back, unk_token="[UNK]", eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = "{% for m in messages %}user : {{ m['content'] }} {% endfor %}assistant :"
    return made


def test_a_tokenizer_that_knows_no_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gives the same tokens for different prompts"):
        opened(tmp_path, None, worded("user", "assistant", ":"))


def test_a_prompt_that_the_tokenizer_does_not_know_is_refused_by_its_words(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, None, worded("user", "assistant", ":", "Sing", "a", "song", ".", "Read", "book", "What", "is", "2", "3"))
    assert len(encode(tokenizer, ["Sing a nice song."])[0]) == 9
    with pytest.raises(InputError, match=r"doesn't know 3 of the 5 tokens of the prompt 'Wer liest das book\.'"):
        encode(tokenizer, ["Sing a song.", "Wer liest das book."])


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("for m in messages", "for m in messages[-1:]"),
        CHATML.replace("for m in messages", "for m in messages if m.role == 'user'"),
        "{% if messages | length > 1 %}{{ raise_exception('one message') }}{% endif %}" + CHATML,
    ],
)
def test_chat_says_of_a_template_that_it_shows_no_earlier_turns(
    tiny: Callable[..., Path], tmp_path: Path, template: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", (tmp_path / "nothing").open("w+"))
    assert not remembers(opened(tmp_path / "t", template)) and remembers(opened(tmp_path / "c", CHATML))
    assert main(["chat", "--model", str(tiny(tokenizer=byte_tokenizer(template)))]) == 0
    assert "its chat template leaves out, or refuses, what was said before" in capsys.readouterr().out
