"""Chat completions: the request for a greedy or a sampled reply, and the reply as one text with its thought marked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from abliterate.compute.draws import TEMPERATURE
from abliterate.files import Json
from abliterate.model.chat.parts import joined

PATH = "/chat/completions"
# Sent to every server: ``transformers serve`` reads frequency_penalty as its repetition penalty, which generation_config.json may set.
GREEDY = {"temperature": 0, "frequency_penalty": 0, "seed": 0, "stream": False}
# Sent only where it is accepted: vLLM and SGLang take its default from generation_config.json; other servers reject the field.
PLAIN = {"repetition_penalty": 1.0}
# What a server that accepts ``PLAIN`` would otherwise take from there too, or has a default of its own for.
ALL_TOKENS = {"top_k": -1, "min_p": 0.0}
_UNFINISHED = ("abort", "error")


@dataclass(frozen=True)
class Reply:
    """``text``: as the model wrote it, with its thinking block. ``marked``: the server returned the thought separately, even if empty.
    ``cut``: the reply reached its token limit."""

    text: str
    new_tokens: int
    marked: bool
    cut: bool = False


def request(model: str, prompt: str, max_new_tokens: int, extra: Json) -> Json:
    """The body of a request for the greedy reply to one user's message."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_new_tokens, **GREEDY, **extra}


def sampled_request(model: str, prompt: str, max_new_tokens: int, extra: Json, seed: int) -> Json:
    """The body of a request for a sampled reply, from all tokens as far as the server can be told so."""
    sampled = {"temperature": TEMPERATURE, "top_p": 1.0, "seed": seed}
    return {**request(model, prompt, max_new_tokens, extra), **sampled, **(ALL_TOKENS if extra else {})}


def reply_of(answer: Any) -> Reply:
    """The reply in a server's JSON. Raises ValueError if there is none."""
    try:
        choice = answer["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        thought = next((message[key] for key in ("reasoning_content", "reasoning") if message.get(key) is not None), None)
        content = message.get("content") or message.get("refusal") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"no choices with a message in {str(answer)[:120]}") from None
    if not isinstance(content, str) or not isinstance(thought, str | None):
        raise ValueError("the message's content is not a text")
    if ended in _UNFINISHED:
        raise ValueError(f"the reply ended with {ended!r}")
    cut = ended == "length"
    return Reply(_whole(thought, content, cut), _new_tokens(answer), thought is not None, cut)


def prompt_tokens(answer: Any) -> int | None:
    """Number of prompt tokens that the server reports; None if it reports none."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def _whole(thought: str | None, content: str, cut: bool) -> str:
    """Thought and answer as one text. A thought that was cut stays open, so that it counts as truncated and not as an empty answer."""
    if not thought:
        return content
    return joined(thought, None if cut and not content.strip() else content)


def _new_tokens(answer: Json) -> int:
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens >= 0 else 0
