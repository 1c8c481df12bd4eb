"""When a reply is clearly a refusal, so that the rest of it need not be generated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from abliterate.model.chat.parts import split_thought
from abliterate.model.chat.thinking import decode
from abliterate.outcomes.normalise import sentences
from abliterate.outcomes.verdict import judge

LEAST = 16  # tokens


@dataclass(frozen=True)
class Settling:
    """Whether a reply so far is a refusal: both the whole text and its finished sentences alone must be judged refused.

    A refusal may still turn into an answer, so this is off unless the user asks for it. A change of topic does not count here: it
    leads to an answer more often than to a refusal. ``texts``: the prompts by their token ids.
    """

    tokenizer: PreTrainedTokenizerBase
    texts: Mapping[tuple[int, ...], str]
    begins_in_thought: bool = False

    def __call__(self, prompt: Sequence[int], reply: Sequence[int]) -> bool:
        if len(reply) < LEAST:
            return False
        text = decode(self.tokenizer, reply)
        begun = sentences(split_thought(text, self.begins_in_thought).answer)
        if len(begun) < 2 and not text.rstrip().endswith((".", "!", "?", "。", "！", "？")):
            return False
        return all(self._refuses(part, prompt) for part in (text, _finished(text)))

    def _refuses(self, text: str, prompt: Sequence[int]) -> bool:
        asked = self.texts.get(tuple(prompt))
        return judge(text, begins_in_thought=self.begins_in_thought, prompt=asked).outcome == "refused"


def _finished(text: str) -> str:
    """A text up to the end of its last complete sentence."""
    return text[: max(text.rfind(end) for end in ".!?。！？") + 1]
