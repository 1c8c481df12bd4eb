"""A model in a conversation: the messages so far, and the next reply token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from abliterate.compute.finite import FiniteScores, traced
from abliterate.compute.forward import pad_id
from abliterate.compute.whole.model import WholeModel, up_to_end
from abliterate.errors import InputError
from abliterate.model.chat.conversation import Message
from abliterate.model.chat.parts import split_thought
from abliterate.model.chat.template import encode_conversations
from abliterate.model.chat.thinking import decode, opens_thought
from abliterate.outcomes.verdict import Verdict, judge

Hear = Callable[[str], None]  # called with the whole reply so far


@dataclass(frozen=True)
class Sampling:
    """How replies are generated: greedily at ``temperature`` 0, else sampled with a generator that starts from ``seed``."""

    temperature: float = 0.0
    seed: int = 0
    max_new_tokens: int = 512


@dataclass(frozen=True)
class ChatReply:
    """A reply. ``stopped``: the user stopped it; else ``verdict`` is that of the rules. ``cut``: it reached its token limit."""

    text: str
    tokens: int
    stopped: bool
    verdict: Verdict | None
    cut: bool = False


@dataclass
class Speaker:
    """A model and its messages so far, without thoughts, which chat templates leave out too."""

    label: str
    model: WholeModel
    manner: Sampling
    _messages: list[Message] = field(default_factory=list)
    _draws: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the conversation and reseed: the same messages then get the same replies again, sampled ones too."""
        self._messages.clear()
        self._draws.manual_seed(self.manner.seed)

    @torch.inference_mode()
    def reply(self, text: str, hear: Hear, stop: Event) -> ChatReply:
        """The reply to ``text``. ``hear`` is called as it grows; it ends early once ``stop`` is set. It is not remembered yet.

        Raises InputError if the conversation is longer than the model reads, or if its chat template refuses it.
        """
        prompt = self._encoded([*self._messages, Message(role="user", content=text)])
        most = self._room(len(prompt))
        self.model.context.check([prompt], 0, self.model.tokenizer)
        tokenizer, ends = self.model.tokenizer, self.model.ends
        listener = _Listener(len(prompt), lambda ids: hear(decode(tokenizer, up_to_end(ids, ends))))
        ids = torch.tensor([prompt], device=self.model.device)
        drawn = [_Drawn(self.manner.temperature, self._draws)] if self.manner.temperature else []
        with traced(self.model):
            self.model.module.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=sorted(ends) or None,
                pad_token_id=pad_id(tokenizer, self.model.folder.config),
                logits_processor=LogitsProcessorList([FiniteScores(torch.ones_like(ids)), *drawn]),
                stopping_criteria=StoppingCriteriaList([_Stopped(stop)]),
                streamer=listener,
            )
        said = up_to_end(listener.ids, ends)
        whole, opened = decode(tokenizer, said), opens_thought(tokenizer)
        stopped = stop.is_set()
        cut = not stopped and len(said) >= most
        return ChatReply(whole, len(said), stopped, None if stopped else judge(whole, (), opened, text, cut), cut)

    def remember(self, text: str, said: ChatReply) -> None:
        """Add ``text`` and the reply to it to the conversation."""
        answer = split_thought(said.text, opens_thought(self.model.tokenizer)).answer
        self._messages += [Message(role="user", content=text), Message(role="assistant", content=answer)]

    def _encoded(self, messages: list[Message]) -> list[int]:
        """Token ids of a conversation up to and including the generation prompt."""
        try:
            return encode_conversations(self.model.tokenizer, [messages])[0]
        except InputError as error:
            raise InputError(f"{error}; /reset starts over") from None

    def _room(self, used: int) -> int:
        """How many tokens the model can still read after ``used`` ones."""
        context = self.model.context
        if context.limit is not None and used >= context.limit:
            raise InputError(f"{self.label}: the conversation has {used} tokens, the model reads {context.limit}; /reset starts over")
        return context.room(used, self.manner.max_new_tokens)


class _Listener(BaseStreamer):
    """Receives the tokens of a reply; the first ones are its prompt."""

    def __init__(self, prompt: int, hear: Callable[[list[int]], None]) -> None:
        self.ids: list[int] = []
        self._skip, self._hear = prompt, hear

    def put(self, value: Tensor) -> None:
        given = value.flatten().tolist()
        skipped = min(self._skip, len(given))
        self._skip -= skipped
        if fresh := given[skipped:]:
            self.ids += fresh
            self._hear(self.ids)

    def end(self) -> None:
        """Nothing is buffered."""


class _Drawn(LogitsProcessor):
    """Adds Gumbel noise to the scores: their largest sum is a sample from the softmax (Gumbel 1954), drawn with our own generator."""

    def __init__(self, temperature: float, draws: torch.Generator) -> None:
        self._temperature, self._draws = temperature, draws

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        uniform = torch.rand(scores.shape, generator=self._draws, dtype=torch.float64).clamp_min(1e-300)
        return scores / self._temperature - (-uniform.log()).log().to(scores)


class _Stopped(StoppingCriteria):
    def __init__(self, stop: Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self._stop.is_set(), dtype=torch.bool, device=input_ids.device)
