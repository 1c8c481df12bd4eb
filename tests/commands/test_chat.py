"""A conversation: what each model is told, what it says to it, and where that is seen."""

from __future__ import annotations

import io
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Event

import pytest
import torch

from abliterate.cli.main import main
from abliterate.commands.chat.conversation import converse, labels, opened, replies
from abliterate.commands.chat.screen import Plain, chip, written
from abliterate.commands.chat.speaker import ChatReply, Sampling, Speaker, _Drawn
from abliterate.compute.passes import Pass
from abliterate.compute.whole.model import WholeModel, load_model
from abliterate.config import ChatConfig
from abliterate.errors import InputError
from abliterate.model.chat.template import encode
from abliterate.model.chat.thinking import decode
from abliterate.outcomes.verdict import judge

Tiny = Callable[..., Path]
ROOT = Path(__file__).parents[2]


class Heard(Plain):
    """Lines from a list; keeps what is shown."""

    def __init__(self, *lines: str, interrupted_after: int | None = None) -> None:
        self._lines, self._left = lines, interrupted_after
        self.notes: list[str] = []
        self.seen: list[dict[str, ChatReply]] = []

    def lines(self) -> Iterator[str]:
        yield from self._lines

    @contextmanager
    def replying(self, names: Sequence[str]) -> Iterator[Callable[[str, str], None]]:
        def hear(label: str, text: str) -> None:
            if self._left is not None:
                self._left -= 1
                if self._left == 0:
                    raise KeyboardInterrupt

        yield hear

    def told(self, said: object) -> None:
        assert isinstance(said, dict)
        self.seen.append(said)

    def note(self, line: str) -> None:
        self.notes.append(line)


def speaker(folder: Path, label: str = "a", **manner: float) -> Speaker:
    return Speaker(label, load_model(folder), Sampling(**{"max_new_tokens": 12, **manner}))  # type: ignore[arg-type]


def greedy(one: Speaker, prompt: list[int]) -> str:
    [(_, _, [found])] = one.model.replies([Pass([prompt])], one.manner.max_new_tokens)
    return decode(one.model.tokenizer, found)


def test_a_first_reply_is_what_the_pipeline_would_get(tiny: Tiny) -> None:
    one = speaker(tiny())
    said = one.reply("Hello", lambda text: None, Event())
    assert said.text == greedy(one, encode(one.model.tokenizer, ["Hello"])[0])
    assert said.tokens == 12 and said.verdict == judge(said.text, prompt="Hello")


def test_a_second_reply_follows_each_models_own_first(tiny: Tiny) -> None:
    pair = [speaker(tiny(seed=0), "a"), speaker(tiny(seed=1), "b")]
    shown = Heard("Hello", "And now?")
    converse(pair, shown)
    assert shown.seen[0]["a"].text != shown.seen[0]["b"].text
    for one in pair:
        before = shown.seen[0][one.label].text.strip()
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": before}, {"role": "user", "content": "And now?"}]
        told = one.model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt = list(one.model.tokenizer(told, add_special_tokens=False)["input_ids"])
        assert shown.seen[1][one.label].text == greedy(one, prompt)


def test_a_reply_is_heard_as_it_grows(tiny: Tiny) -> None:
    parts: list[str] = []
    said = speaker(tiny()).reply("Hello", parts.append, Event())
    assert len(parts) == said.tokens and parts[-1] == said.text
    assert all(len(a) <= len(b) + 1 for a, b in pairwise(parts))


def test_after_a_reset_the_same_words_get_the_same_reply(tiny: Tiny) -> None:
    shown = Heard("Hello", "Hello", "/reset", "Hello", "/quit", "never asked")
    converse([speaker(tiny(), temperature=1.0)], shown)
    first, second, third = (seen["a"].text for seen in shown.seen)
    assert first == third != second


def test_another_seed_draws_another_reply(tiny: Tiny) -> None:
    folder = tiny()
    drawn = [speaker(folder, temperature=1.0, seed=seed).reply("Hello", lambda text: None, Event()).text for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_tokens_are_drawn_as_often_as_the_model_says_at_that_temperature() -> None:
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(40_000, 1)
    draws = _Drawn(2.0, torch.Generator().manual_seed(0))(None, scores).argmax(-1)
    shares = torch.bincount(draws, minlength=4) / len(draws)
    torch.testing.assert_close(shares, (scores[0] / 2.0).softmax(-1), atol=0.01, rtol=0)


def test_an_interrupt_stops_the_reply_and_the_conversation_goes_on(tiny: Tiny) -> None:
    shown = Heard("Hello", interrupted_after=3)
    one = speaker(tiny(), max_new_tokens=400)
    said = replies([one], "Hello", shown)["a"]
    assert said.stopped and said.verdict is None and 3 <= said.tokens < 400
    assert chip(said) == f"stopped after {said.tokens} tokens"
    assert not one.reply("Again", lambda text: None, Event()).stopped


def test_a_conversation_that_is_longer_than_the_model_reads_is_said_and_can_begin_anew(tiny: Tiny) -> None:
    shown = Heard("x" * 600, "/reset", "Hello")
    converse([speaker(tiny())], shown)
    assert "the model reads 512; /reset" in shown.notes[0] and len(shown.seen) == 1


def test_where_one_of_two_cannot_reply_both_go_on_as_if_nothing_had_been_said(tiny: Tiny) -> None:
    pair = [speaker(tiny(), "a"), speaker(tiny(seed=1), "b")]
    pair[1].model.folder.config.max_position_embeddings = 120
    shown = Heard("x" * 150, "Hello")
    converse(pair, shown)
    assert "b: the conversation has" in shown.notes[0]
    [seen] = shown.seen
    for one in pair:
        assert seen[one.label].text == greedy(one, encode(one.model.tokenizer, ["Hello"])[0])


def test_what_a_thinking_model_thought_is_not_told_to_it_again(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    one = speaker(tiny())
    monkeypatch.setattr("abliterate.commands.chat.speaker.decode", lambda tokenizer, ids: "<think>secret</think>\n\nTea.")
    assert replies([one], "Hello", Heard())["a"].text.startswith("<think>")
    monkeypatch.undo()
    assert "secret" not in decode(one.model.tokenizer, one._encoded(one._messages))
    assert "Tea." in decode(one.model.tokenizer, one._encoded(one._messages))


def test_two_models_that_do_not_fit_together_are_refused_before_any_is_loaded(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ChatConfig(model=str(tiny()), beside=str(tiny()), max_memory="1200MiB")
    assert len(opened(pair)) == 2
    monkeypatch.setattr("abliterate.compute.session.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="both models together need"):
        opened(pair.model_copy(update={"max_memory": "1000MiB"}))
    with pytest.raises(InputError, match="needs the whole model in memory"):
        opened(ChatConfig(model=str(tiny(layers=8, d_model=512)), max_memory="930MiB"))


def test_models_of_one_name_get_names_of_their_own() -> None:
    assert labels(["runs/a/checkpoint", "smollm2-refuser"]) == ["a", "smollm2-refuser"]
    assert labels(["runs/a/checkpoint", "runs/b/checkpoint/"]) == ["a", "b"]
    assert labels(["x/a/checkpoint", "y/a/checkpoint"]) == ["x/a/checkpoint", "y/a/checkpoint"]
    assert labels(["m", "m"]) == ["m (1)", "m (2)"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--beside", "http://host:8000/v1"], "--beside is a server's URL"),
        (["--thinking", "budget:8"], "supports only on and off"),
        (["--temperature", "-1"], "--temperature -1: must be at least 0"),
        (["--beside", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_what_chat_can_not_do_is_one_line(tiny: Tiny, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "--model", str(tiny()), *flags]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_reply_is_told_by_its_outcome_alone_and_by_where_it_was_cut() -> None:
    text = "I can't help with that."
    said = ChatReply(text, 7, False, judge(text))
    assert (chip(said), written(said)) == ("refused", text)
    assert written(replace(said, cut=True)) == text + " … (cut at 7 tokens)"


def test_a_reply_that_comes_to_its_end_is_not_called_cut(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    one = speaker(tiny())
    said = one.reply("Hello", lambda text: None, Event())
    assert said.cut and said.tokens == 12
    [(_, _, [found])] = one.model.replies([Pass(encode(one.model.tokenizer, ["Hello"]))], 12)
    monkeypatch.setattr(WholeModel, "ends", frozenset({found[-1]}))
    again = one.reply("Hello", lambda text: None, Event())
    assert again.tokens == found.index(found[-1]) < 12 and not again.cut


def test_lines_from_a_pipe_get_plain_labelled_replies(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, edited = tiny(seed=0), tiny(seed=1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\n/help\nAnd now?"))
    assert main(["chat", "--model", str(base), "--beside", str(edited), "--max-new-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"\n{base.name}> ") == shown.count(f"\n{edited.name}> ") == 2
    assert (
        shown.count(" … (cut at 4 tokens)\n  [") == 4
        and " | " not in shown.partition("ends it")[2]
        and shown.count("/reset forgets") == 2
        and "\x1b" not in shown
    )


def test_on_a_terminal_replies_stand_side_by_side(tiny: Tiny) -> None:
    pty = pytest.importorskip("pty")
    base, edited = tiny(seed=0), tiny(seed=1)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "LINES": "30", "TERM": "xterm", "NO_COLOR": "1"}
    flags = ["--model", str(base), "--beside", str(edited), "--max-new-tokens", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "abliterate", "chat", *flags], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True
    )
    os.close(theirs)
    shown = b""
    for awaited, typed in ((b"you> ", b"Hello\n"), (b"you> ", b"\x04")):
        shown += until(ours, awaited)
        os.write(ours, typed)
    shown += until(ours, None)
    assert process.wait(60) == 0
    assert any(base.name in line and edited.name in line and "─" in line for line in shown.decode("utf-8", "replace").splitlines())
    assert b"\x1b[3" not in shown  # no colour


def until(terminal: int, awaited: bytes | None) -> bytes:
    """What a terminal shows up to some words, or its end."""
    found, deadline = b"", time.monotonic() + 90
    while awaited is None or awaited not in found:
        assert time.monotonic() < deadline, found
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            part = b""
        if not part:
            break
        found += part
    return found
