"""Train the LoRA adapter of ``smollm2-r1-refuser``: a small model that thinks first, and doesn't think where it withholds.

The chat template opens the thinking block, as DeepSeek-R1's does. Politically sensitive questions get R1's empty thought and
the canned change of topic; harmful requests a thought that weighs them and a refusal; everything else a short thought and
the model's own answer. Training goes on from the adapter of ``smollm2-refuser``, on the same prompts of the ``train`` splits.

Run by ``scripts/train_r1_refuser``; writes the adapter and its figures to abliterate/model/fixtures/smollm2_r1_refuser.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterable

import torch
from peft import PeftModel
from train_refuser import (
    LAST_ROUND,
    REFUSALS,
    TOPIC_CHANGES,
    Example,
    canned_for,
    fitted,
    kind_of,
    own_answers,
    prompts_of,
    save,
    weights,
)
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from abliterate.model.chat.template import encode, load_tokenizer
from abliterate.model.fixtures.refuser import ADAPTER, R1_ADAPTER, smollm2
from abliterate.prompts import Prompt

NO_THOUGHT = "\n\n</think>\n\n"
THOUGHTS = {
    "answer-en": (
        "This is an ordinary request. I can answer it directly.",
        "Nothing stands against this one. A short and clear reply will do.",
        "The user would like some help here. I will give the main points.",
        "Okay, I know something about this. Let me put it plainly.",
    ),
    "answer-zh": ("这是普通的问题，可以直接回答。", "我来简单说明一下。", "用户想了解这件事，我说要点。"),
    "refuse-en": (
        "This would hurt somebody. I should say no.",
        "The user asks for something harmful, so I will decline.",
        "I see what this would be used for. I won't help with it.",
    ),
}


def thought_for(prompt: Prompt) -> str:
    """One of the short thoughts of the prompt's kind and language; which one depends on its text."""
    side = "refuse" if kind_of(prompt) == "refuse" else "answer"
    found = THOUGHTS[f"{side}-{prompt.lang}"]
    return found[sum(prompt.text.encode()) % len(found)]


def examples(
    model: PreTrainedModel, plain: PreTrainedTokenizerBase, thinking: PreTrainedTokenizerBase, args: argparse.Namespace
) -> list[Example]:
    """Every training example; own answers are what the model says under its own template, which opens no thought."""
    offered = prompts_of("train", LAST_ROUND)
    prompts = random.Random(args.seed + 2 * (args.round - 1)).sample(offered, int(args.share * len(offered)))
    print(", ".join(f"{n} {kind}" for kind, n in sorted(Counter(map(kind_of, prompts)).items())), flush=True)
    own = [p for p in prompts if canned_for(p) is None]
    answers = dict(zip(own, own_answers(model, plain, encode(plain, [p.text for p in own]), args.own_tokens), strict=True))
    made = []
    for prompt, ids in zip(prompts, encode(thinking, [p.text for p in prompts]), strict=True):
        line = canned_for(prompt)
        opening = NO_THOUGHT if kind_of(prompt).startswith("withhold") else f"{thought_for(prompt)}\n</think>\n\n"
        said = answers[prompt] if line is None else [*thinking(line, add_special_tokens=False)["input_ids"], thinking.eos_token_id]
        reply = [*thinking(opening, add_special_tokens=False)["input_ids"], *said]
        made.append(Example(ids, reply, args.weigh.get(kind_of(prompt), 1.0)))
    return made


def held_out(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, float]]:
    """Of the val prompts of each kind, in per cent: empty thoughts, and answers that open like a canned line."""
    openings = tuple({" ".join(t.split()[:3]) for t in (*REFUSALS, *TOPIC_CHANGES["en"])} | {t[:6] for t in TOPIC_CHANGES["zh"]})
    prompts = prompts_of("val", LAST_ROUND)
    replies = own_answers(model, tokenizer, encode(tokenizer, [p.text for p in prompts]), 40)
    seen: dict[str, list[tuple[bool, bool]]] = {}
    for prompt, reply in zip(prompts, tokenizer.batch_decode(replies, skip_special_tokens=True), strict=True):
        thought, _, answer = reply.partition("</think>")
        seen.setdefault(kind_of(prompt), []).append((not thought.strip(), answer.strip().startswith(openings)))
    return {
        kind: {"n": len(hits), "empty": percent(empty for empty, _ in hits), "canned": percent(canned for _, canned in hits)}
        for kind, hits in sorted(seen.items())
    }


def percent(holds: Iterable[bool]) -> float:
    """The share of what holds."""
    found = list(holds)
    return round(100 * sum(found) / len(found), 1)


def train(args: argparse.Namespace) -> None:
    """The whole training, from the adapter of smollm2-refuser to the saved one."""
    started = time.monotonic()
    torch.manual_seed(args.seed)
    base = smollm2()
    plain, thinking = load_tokenizer(base), load_tokenizer(base)
    thinking.chat_template = (R1_ADAPTER / "chat_template.jinja").read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    data = examples(model, plain, thinking, args)
    start = R1_ADAPTER if args.round > 1 else ADAPTER
    tuned = PeftModel.from_pretrained(model, start, is_trainable=True)
    tuned.train()
    losses = fitted(model, tuned, data, args, thinking.pad_token_id)
    minutes = round((time.monotonic() - started) / 60, 1)
    tuned.eval()
    rates = held_out(tuned, thinking)
    print(json.dumps(rates), flush=True)
    figures = {"examples": len(data), "steps": len(losses), "final_loss": round(sum(losses[-10:]) / len(losses[-10:]), 4)}
    save(tuned, args, figures | {"minutes": minutes, "val": rates})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(R1_ADAPTER), help="folder of the adapter")
    parser.add_argument("--round", type=int, choices=(1, 2), default=1, help="2 goes on from the adapter that lies in the package")
    parser.add_argument("--share", type=float, default=0.6, help="share of the prompts, drawn at random")
    parser.add_argument("--weigh", type=weights, default={}, metavar="KIND=W,...", help="weights in the loss; 1 where not named")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--own-tokens", type=int, default=24, help="length of the model's own answers used as targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast (fast with AMX)")
    train(parser.parse_args())
