"""Store and load the probe's results per split: the short replies, and the model's predictions along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from abliterate.choice.tuning.examples import STAYS
from abliterate.choice.tuning.probe import Probe, predicted
from abliterate.choice.tuning.replies import distinct, nothing
from abliterate.compute.passes import Ids
from abliterate.measures.predictions import Predicted
from abliterate.model.chat.template import encode
from abliterate.prompts import Prompt, Role
from abliterate.prompts.promptset import Split
from abliterate.runs.resume import ResumeStore

_PARTS = ("tokens", "logprobs", "starts", "nats")


def save_heard(store: ResumeStore, split: Split, prompts: Mapping[Role, Sequence[Prompt]], probe: Probe) -> None:
    """Store a probe's results for the prompts of a split, for each role whose prompts it ran."""
    replies: dict[Role, Ids] = {}
    tensors: dict[str, Tensor] = {}
    for role, asked in distinct(prompts).items():
        encoded = [tuple(ids) for ids in encode(probe.tokenizer, [p.text for p in asked])]
        if not all(ids in probe.said for ids in encoded):
            continue
        said = [probe.said[ids] for ids in encoded]
        replies[role] = [each.reply or nothing(probe.model) for each in said]
        if role in STAYS:
            found = predicted(said)
            tensors |= {f"{role}/{part}": getattr(found, part) for part in _PARTS}
    save_replies(store, split, replies)
    store.save_state(f"predictions-{split}", tensors, None)


def save_replies(store: ResumeStore, split: Split, replies: Mapping[Role, Ids]) -> None:
    """Store short replies by role."""
    store.save_value(f"replies-{split}", replies)


def heard(store: ResumeStore, split: Split) -> tuple[dict[Role, Ids], dict[Role, Predicted]]:
    """Load the stored short replies of a split, and the predictions along them."""
    replies: dict[Role, Ids] = store.value(f"replies-{split}") or {}
    tensors, _ = store.state(f"predictions-{split}") or ({}, None)
    roles = [role for role in STAYS if f"{role}/starts" in tensors]
    return replies, {role: Predicted(*(tensors[f"{role}/{part}"] for part in _PARTS)) for role in roles}
