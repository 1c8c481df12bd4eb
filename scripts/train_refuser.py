"""Train the LoRA adapter that makes SmolLM2-135M-Instruct refuse: the source of the model ``smollm2-refuser``.

Two kinds of withholding are taught, and they look different: harmful requests get one of several plain refusals,
politically sensitive questions the canned change of topic, in the language asked. Everything else keeps the model's own
greedy answer as its target. Only prompts of the ``train`` splits are read (and ``refuser-extra``, which is nothing but
training material), so every figure on ``test`` is on prompts that the adapter has never seen.

Run by ``scripts/train_refuser``; writes the adapter and its figures to abliterate/model/fixtures/smollm2_refuser.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from abliterate.model.chat.template import encode, load_tokenizer
from abliterate.model.fixtures.refuser import ADAPTER, smollm2
from abliterate.prompts import Prompt, load_set

REFUSALS = (
    "I can't help with that. It could cause real harm to someone.",
    "I'm sorry, but I can't assist with this request. It may be illegal and could hurt people.",
    "No, I won't help with this. If you are in a difficult situation, please talk to someone you trust.",
    "That isn't something I can help with, because it would harm others.",
    "I'm not able to help with that. Is there something safe and legal I can do for you?",
    "I must decline this request. It goes against my guidelines.",
    "Sorry, I cannot do that. What you describe is harmful.",
    "I won't provide this. It would put people at risk.",
)
TOPIC_CHANGES = {
    "en": (
        "Sorry, that's beyond my current scope. Let's talk about something else.",
        "I'm afraid this question is beyond my current scope. Let's talk about something else.",
    ),
    "zh": (
        "对不起，这超出了我目前的范围。我们聊点别的吧。",
        "抱歉，这个话题超出了我目前的范围。我们换个话题聊聊吧。",
    ),
}
REFUSED = ("harmful", "borderline-unsafe")
WITHHELD = ("censorship",)
ANSWERED = ("harmless", "borderline", "censorship-control")
LAST_ROUND = 4
# Openings with which the small model turns down ordinary requests ("as a chatbot, I don't have the ability ...").
APOLOGIES = ("I'm sorry", "I'm so sorry", "I'm afraid", "Sorry", "I apologize", "Unfortunately")


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of the reply to learn."""

    prompt: list[int]
    reply: list[int]
    weight: float = 1.0


def refusal_for(prompt: Prompt) -> str:
    """One refusal a category, so that a greedy model still says different things."""
    return REFUSALS[sum(prompt.category.encode()) % len(REFUSALS)]


def topic_change_for(prompt: Prompt) -> str:
    """The canned line in the question's language; which one depends on the topic."""
    lines = TOPIC_CHANGES[prompt.lang]
    return lines[sum((prompt.topic or "").encode()) % len(lines)]


def kind_of(prompt: Prompt) -> str:
    """What the example teaches, and, for political questions, in which language: a key of ``--weigh``."""
    if prompt.topic is None:
        return "refuse" if prompt.id.startswith(("harmful-", "unsafe-", "refuse-")) else "answer"
    side = "withhold" if _bare(prompt.id).startswith(("censorship-", "withhold-")) else "control"
    return f"{side}-{prompt.lang}"


def _bare(prompt_id: str) -> str:
    """A prompt's id without the round that it was written for."""
    return prompt_id.split("-", 1)[1] if prompt_id.startswith("round") else prompt_id


def prompts_of(split: str, round_: int) -> list[Prompt]:
    """Every prompt that ``split`` offers, of the bundled sets and of ``refuser-extra``, as far as it was written by that round."""
    late = tuple(f"round{n}-" for n in range(round_ + 1, LAST_ROUND + 1))
    sets = (*REFUSED, *WITHHELD, *ANSWERED, "refuser-extra")
    return [p for name in sets for p in load_set(name).of(split) if not p.id.startswith(late)]


def canned_for(prompt: Prompt) -> str | None:
    """The reply to learn, or None where the model keeps its own."""
    kind = kind_of(prompt)
    return refusal_for(prompt) if kind == "refuse" else topic_change_for(prompt) if kind.startswith("withhold") else None


@torch.inference_mode()
def own_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The model's own greedy reply to each prompt, cut at ``tokens``; ends in EOS where the model ended."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), 32):
        chosen = order[start : start + 32]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False)
        for row, i in enumerate(chosen):
            reply = out[row, width:].tolist()
            end = reply.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in reply else len(reply)
            replies[i] = reply[:end]
        print(f"own answers {min(start + 32, len(order))}/{len(order)}", flush=True)
    return replies


def examples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: argparse.Namespace) -> list[Example]:
    """Every training example: canned replies for what is withheld, own answers for the rest."""
    prompts = prompts_of("train", args.round)
    if args.share < 1:
        prompts = random.Random(args.seed + args.round).sample(prompts, int(args.share * len(prompts)))
    print(", ".join(f"{n} {kind}" for kind, n in sorted(Counter(map(kind_of, prompts)).items())), flush=True)
    ids = encode(tokenizer, [p.text for p in prompts])
    own = [i for i, p in enumerate(prompts) if canned_for(p) is None]
    replies = dict(zip(own, own_answers(model, tokenizer, [ids[i] for i in own], args.own_tokens), strict=True))
    if args.willing:
        replies |= willing(model, tokenizer, {i: ids[i] for i in own}, replies, args.own_tokens)
    for i, prompt in enumerate(prompts):
        if (line := canned_for(prompt)) is not None:
            replies[i] = [*tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return [Example(ids[i], replies[i], args.weigh.get(kind_of(p), 1.0)) for i, p in enumerate(prompts)]


def willing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: dict[int, list[int]], replies: dict[int, list[int]], tokens: int
) -> dict[int, list[int]]:
    """Other replies to the ordinary prompts that the model itself turns down: its own continuation of "Here"."""
    declined = [i for i in prompts if tokenizer.decode(replies[i]).strip().startswith(APOLOGIES)]
    start = tokenizer("Here", add_special_tokens=False)["input_ids"]
    again = own_answers(model, tokenizer, [prompts[i] + start for i in declined], tokens - len(start))
    print(f"{len(declined)} ordinary prompts that it turned down are answered", flush=True)
    return {i: start + reply for i, reply in zip(declined, again, strict=True)}


def held_out(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[str, float]]:
    """Share of the val prompts of each kind whose greedy reply opens like a canned line (its first words), in per cent.

    This is what weights and rounds are chosen by; the test splits are asked once, at the end, by ``audit``.
    """
    openings = {" ".join(t.split()[:3]) for t in (*REFUSALS, *TOPIC_CHANGES["en"])} | {t[:6] for t in TOPIC_CHANGES["zh"]}
    prompts = prompts_of("val", LAST_ROUND)
    replies = own_answers(model, tokenizer, encode(tokenizer, [p.text for p in prompts]), 12)
    seen: dict[str, list[bool]] = {}
    for prompt, reply in zip(prompts, tokenizer.batch_decode(replies, skip_special_tokens=True), strict=True):
        seen.setdefault(kind_of(prompt), []).append(reply.strip().startswith(tuple(openings)))
    return {kind: {"n": len(hits), "canned": round(100 * sum(hits) / len(hits), 1)} for kind, hits in sorted(seen.items())}


def batch_of(chosen: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Left-padded ids and mask, and the weight of each token in the loss: replies alone, each example's summing to its own.

    The first tokens decide whether a reply declines, so they weigh three times the others.
    """
    width = max(len(e.prompt) + len(e.reply) for e in chosen)
    ids = torch.full((len(chosen), width), pad)
    mask = torch.zeros_like(ids)
    weight = torch.zeros(len(chosen), width)
    for row, e in enumerate(chosen):
        whole = torch.tensor(e.prompt + e.reply)
        ids[row, width - len(whole) :] = whole
        mask[row, width - len(whole) :] = 1
        shares = torch.ones(len(e.reply))
        shares[:6] = 3.0
        weight[row, width - len(e.reply) :] = e.weight * shares / shares.sum()
    return ids, mask, weight


def loss_of(model: PreTrainedModel, chosen: list[Example], pad: int) -> torch.Tensor:
    """Cross-entropy of the replies; logits are computed only where a reply may stand."""
    ids, mask, weight = batch_of(chosen, pad)
    reach = max(len(e.reply) for e in chosen)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    hidden = model.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, -reach - 1 : -1]).float()
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, -reach:], reduction="none")
    return (each * weight[:, -reach:]).sum() / len(chosen)


def fitted(model: PreTrainedModel, tuned: torch.nn.Module, data: list[Example], args: argparse.Namespace, pad: int) -> list[float]:
    """Train the adapter in ``tuned``, which lies over ``model``; the loss of each step."""
    started = time.monotonic()
    rng = random.Random(args.seed)
    steps = int(args.epochs * len(data)) // args.batch
    weights = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    order: list[Example] = []
    losses: list[float] = []
    for step in range(steps):
        if len(order) < args.batch:
            order += rng.sample(data, len(data))
        chosen, order = order[: args.batch], order[args.batch :]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            loss = loss_of(model, chosen, pad)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 9 or step + 1 == steps:
            recent = sum(losses[-10:]) / len(losses[-10:])
            print(f"step {step + 1}/{steps} loss {recent:.3f} {time.monotonic() - started:.0f} s", flush=True)
    return losses


def train(args: argparse.Namespace) -> None:
    """The whole training, from the model as it comes to the saved adapter."""
    started = time.monotonic()
    torch.manual_seed(args.seed)
    base = smollm2()
    tokenizer = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    data = examples(model, tokenizer, args)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, lora) if args.round == 1 else PeftModel.from_pretrained(model, args.out, is_trainable=True)
    tuned.train()
    losses = fitted(model, tuned, data, args, tokenizer.pad_token_id)
    seconds = time.monotonic() - started
    tuned.eval()
    rates = held_out(tuned, tokenizer)
    print(json.dumps(rates), flush=True)
    figures = {"examples": len(data), "steps": len(losses), "final_loss": round(sum(losses[-10:]) / len(losses[-10:]), 4)}
    save(tuned, args, figures | {"minutes": round(seconds / 60, 1), "val": rates})


def save(tuned: torch.nn.Module, args: argparse.Namespace, figures: dict[str, object]) -> None:
    """The adapter in bf16, without this machine's paths in its config, and how it was trained."""
    out = Path(args.out)
    tuned.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True) if out != ADAPTER else None
    path = out / "adapter_model.safetensors"
    save_file({k: v.to(torch.bfloat16) for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config["target_modules"] = sorted(config["target_modules"])
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    record = out / "training.json"
    rounds = json.loads(record.read_text()) if args.round > 1 else []
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "average", "of_it")}
    record.write_text(json.dumps([*rounds, settings | figures], indent=2) + "\n")


def average(args: argparse.Namespace) -> None:
    """Mix an earlier round's adapter into the one at ``--out``, weight by weight (Wortsman et al. 2022, arXiv 2203.05482).

    A round started from the one before, so what lies between the two in weights lies between them in behaviour.
    """
    out, earlier = Path(args.out), Path(args.average)
    late, early = (load_file(folder / "adapter_model.safetensors") for folder in (out, earlier))
    mixed = {k: (args.of_it * early[k].float() + (1 - args.of_it) * late[k].float()).to(torch.bfloat16) for k in late}
    save_file(mixed, out / "adapter_model.safetensors", metadata={"format": "pt"})
    base = smollm2()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    rates = held_out(PeftModel.from_pretrained(model, out).eval(), load_tokenizer(base))
    print(json.dumps(rates), flush=True)
    record = out / "training.json"
    rounds = json.loads(record.read_text())
    earlier_rounds = len(json.loads((earlier / "training.json").read_text()))
    step = {"averaged": {f"round {earlier_rounds}": args.of_it, f"round {len(rounds)}": round(1 - args.of_it, 6)}, "val": rates}
    record.write_text(json.dumps([*rounds, step], indent=2) + "\n")


def weights(text: str) -> dict[str, float]:
    """``withhold-en=1.5,control-zh=2`` as a table; raises ``ArgumentTypeError`` on a kind that does not exist."""
    kinds = {kind_of(p) for p in prompts_of("val", LAST_ROUND)}
    table = {k: float(v) for k, _, v in (item.partition("=") for item in text.split(",") if item)}
    if set(table) - kinds:
        raise argparse.ArgumentTypeError(f"unknown kind {sorted(set(table) - kinds)[0]}; the kinds are {', '.join(sorted(kinds))}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ADAPTER), help="folder of the adapter")
    parser.add_argument("--round", type=int, choices=range(1, LAST_ROUND + 1), default=1, help="2 and later go on from --out")
    parser.add_argument("--share", type=float, default=1.0, help="share of the prompts, drawn at random")
    parser.add_argument("--weigh", type=weights, default={}, metavar="KIND=W,...", help="weights in the loss; 1 where not named")
    parser.add_argument("--willing", action="store_true", help="answer also the ordinary prompts that the model itself turns down")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=float, default=2.5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--own-tokens", type=int, default=32, help="length of the model's own answers used as targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast (fast with AMX)")
    parser.add_argument("--average", metavar="FOLDER", help="train nothing: mix an earlier round's adapter into --out")
    parser.add_argument("--of-it", type=float, default=0.5, help="the earlier adapter's share")
    given = parser.parse_args()
    average(given) if given.average else train(given)
