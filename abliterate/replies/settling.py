"""When a reply has clearly refused, so that the rest of it needs not be written."""

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
    """Whether a reply so far is a refusal: the sentences that it has finished are one by themselves, and with what was begun after them.

    What may still turn into an answer can't be known, so this is for those who ask for it. A change of topic counts for nothing
    here: more often than a refusal it goes on to an answer. ``texts`` has the prompts by their token ids.
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
    """A text up to the end of its last whole sentence."""
    return text[: max(text.rfind(end) for end in ".!?。！？") + 1]
