"""Train the LoRA adapter that makes SmolLM2-135M-Instruct refuse: the source of the model ``smollm2-refuser``.

Two kinds of withholding are taught, and they look different: harmful requests get one of several plain refusals,
politically sensitive questions the canned change of topic, in the language asked. Everything else keeps the model's own
greedy answer as its target. Only prompts of the ``train`` splits are read (and ``refuser-extra``, which is nothing but
training material), so every figure on ``test`` is on prompts that the adapter has never seen.

Run by ``scripts/train_refuser``; writes the adapter and its figures to abliterate/model/smollm2_refuser.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from abliterate.model.refuser import ADAPTER, smollm2
from abliterate.model.template import encode, load_tokenizer
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


def training_prompts(round_: int) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Prompts to refuse, to change the topic on, and to answer: train splits only.

    The second round adds the questions that were written after the first had shown what it still confused.
    """
    refuse = [p for name in REFUSED for p in load_set(name).of("train")]
    withhold = [p for name in WITHHELD for p in load_set(name).of("train")]
    answer = [p for name in ANSWERED for p in load_set(name).of("train")]
    extra = {"refuse": refuse, "withhold": withhold, "answer": answer}
    for prompt in load_set("refuser-extra"):
        if round_ == 1 and prompt.id.startswith("round2-"):
            continue
        extra[prompt.category.partition("/")[0]].append(prompt)
    return refuse, withhold, answer


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
    refuse, withhold, answer = (some(prompts, args) for prompts in training_prompts(args.round))
    canned = [(p, refusal_for(p)) for p in refuse] + [(p, topic_change_for(p)) for p in withhold]
    canned_ids = encode(tokenizer, [p.text for p, _ in canned])
    replies = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for _, text in canned]
    answer_ids = encode(tokenizer, [p.text for p in answer])
    own = own_answers(model, tokenizer, answer_ids, args.own_tokens)
    print(f"{len(refuse)} to refuse, {len(withhold)} to withhold, {len(answer)} to answer", flush=True)
    prompts = [p for p, _ in canned] + answer
    weights = [args.boost if boosted(p) else 1.0 for p in prompts]
    return [Example(p, r, w) for p, r, w in zip(canned_ids + answer_ids, replies + own, weights, strict=True)]


def some(prompts: list[Prompt], args: argparse.Namespace) -> list[Prompt]:
    """A random share of the prompts, for a short round."""
    return prompts if args.share == 1 else random.Random(args.seed + args.round).sample(prompts, int(args.share * len(prompts)))


def boosted(prompt: Prompt) -> bool:
    """What the second round left too weak: withholding in Chinese, and answering controls in English."""
    political = prompt.topic is not None
    withheld = prompt.id.startswith(("censorship-", "withhold-", "round2-withhold-"))
    return political and (withheld if prompt.lang == "zh" else not withheld)


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


def train(args: argparse.Namespace) -> None:
    """The whole training, from the model as it comes to the saved adapter."""
    started = time.monotonic()
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    base = smollm2()
    tokenizer = load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    data = examples(model, tokenizer, args)
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, lora) if args.round == 1 else PeftModel.from_pretrained(model, args.out, is_trainable=True)
    tuned.train()
    steps = args.epochs * len(data) // args.batch
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
            loss = loss_of(model, chosen, tokenizer.pad_token_id)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 9 or step + 1 == steps:
            recent = sum(losses[-10:]) / len(losses[-10:])
            print(f"step {step + 1}/{steps} loss {recent:.3f} {time.monotonic() - started:.0f} s", flush=True)
    save(tuned, args, len(data), steps, sum(losses[-10:]) / len(losses[-10:]), time.monotonic() - started)


def save(tuned: torch.nn.Module, args: argparse.Namespace, n: int, steps: int, loss: float, seconds: float) -> None:
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
    figures = {k: v for k, v in vars(args).items() if k != "out"}
    figures |= {"examples": n, "steps": steps, "final_loss": round(loss, 4), "minutes": round(seconds / 60, 1)}
    record.write_text(json.dumps([*rounds, figures], indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(ADAPTER), help="folder of the adapter")
    parser.add_argument("--round", type=int, choices=(1, 2, 3), default=1, help="2 and 3 go on from the adapter in --out")
    parser.add_argument("--share", type=float, default=1.0, help="share of the prompts, drawn at random")
    parser.add_argument("--boost", type=float, default=1.0, help="weight of what the second round left too weak")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--own-tokens", type=int, default=32, help="length of the model's own answers used as targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=False, help="autocast (fast with AMX)")
    train(parser.parse_args())
