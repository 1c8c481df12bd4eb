"""What is right for a damaged checkpoint, told by transformers alone: which model its config and its tensors make, if they make one.

The program may refuse it in one line. Where it does not, what it measures must be what that model computes of the user's words, and what
it edits must load as a model that writes nothing along the direction, with the base's own head.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from fault_folders import HEAD, LEFT, tensors_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from abliterate.api import load_model
from abliterate.compute.passes import Pass
from abliterate.errors import CheckError, InputError
from abliterate.model.chat.template import encode

PROBES = ("what is a fjord?", "sing of six kings.")
IGNORED = "rotary_emb.inv_freq"  # old checkpoints of Llama hold it, and every version of transformers leaves it out
CALLED = {"git-lfs pointer instead of a file": "lfs"}  # kinds that a refusal calls by their name
ALONG, LIKE = 0.02, 1e-3  # of what a block writes (bfloat16 rounds an edit to about a thousandth); of the largest logit


class BrokenPromiseError(AssertionError):
    """What must never happen has happened."""


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenPromiseError(otherwise)


def expected(model: Path) -> PreTrainedModel | None:
    """The model, in float32, that the config and the stored tensors make; None where these do not fit each other."""
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        tensors = {name: t.float() for name, t in tensors_of(model).items() if IGNORED not in name}
        config.tie_word_embeddings = bool(config.tie_word_embeddings) and HEAD not in tensors
        with no_init_weights(), init_empty_weights(include_buffers=False):
            made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
        found = made.load_state_dict(tensors, strict=False, assign=True)
        made.tie_weights()
    except Exception:  # whatever transformers says of it
        return None
    lacking = [name for name in found.missing_keys if not (name == HEAD and config.tie_word_embeddings)]
    return None if lacking or found.unexpected_keys else made.train(False)


def measured(model: Path, kind: str) -> str:
    """How measuring a damaged checkpoint ended. Raises BrokenPromiseError where it was neither refused in a line nor right."""
    try:
        held = load_model(model)
        ids = encode(held.tokenizer, PROBES)
        rows = [row for _, indices, logits in held.logits([Pass(ids)]) for row in zip(indices, logits[:, -1], strict=True)]
        for _ in held.replies([Pass(ids)], 2):
            pass
    except (InputError, CheckError) as error:
        require(len(str(error).splitlines()) == 1, f"measuring: a message of several lines: {str(error)!r}")
        require(CALLED.get(kind, "") in str(error).lower(), f"measuring: {str(error)!r} does not say {CALLED.get(kind)!r}")
        return "not measured"
    for text, sequence in zip(PROBES, ids, strict=True):
        said = "".join(held.tokenizer.convert_ids_to_tokens(list(sequence)))
        require(_letters(text) in _letters(said), f"measured, though the model gets {said!r} for {text!r}")
    right = expected(model)
    require(right is not None, "measured, though its config and its tensors make no model")
    assert right is not None
    for index, row in rows:
        with torch.no_grad():
            known = right(torch.tensor([ids[index]])).logits[0, -1]
        require(not _broken(known), "measured, though its logits are not finite")
        require(_alike(row, known), f"measured, but its logits are off by {(row - known).abs().max():.2g}")
    return "measured right"


def _letters(text: str) -> str:
    """A text without its spaces, which some kinds of tokenizer keep in other marks."""
    return text.replace(" ", "")


def _broken(logits: Tensor) -> bool:
    return bool(logits.isnan().any() or (logits == torch.inf).any() or (logits == -torch.inf).all())


def _alike(one: Tensor, other: Tensor) -> bool:
    """Up to rounding, -inf in the same places."""
    finite = other.isfinite()
    scale = float(other[finite].abs().max())
    return bool((one.isfinite() == finite).all() and (one[finite] - other[finite]).abs().max() <= LIKE * max(scale, 1.0))


def check_edited(model: Path, out: Path, r: Tensor, options: dict[str, Any]) -> None:
    """Raise BrokenPromiseError where an edited checkpoint does not load, kept what training left, has another head, or writes along r."""
    left = [name for name in LEFT if (out / name).exists()]
    require(not left, f"edited, and {left[:1]} stands in the new checkpoint")
    before, after = expected(model), expected(out)
    require(before is not None, f"edited {options}, though its config and its tensors make no model")
    require(after is not None, f"edited {options}, but what was written makes no model")
    assert before is not None and after is not None
    head, new = (made.get_output_embeddings().weight for made in (before, after))
    require(head.equal(new) or bool(head.isnan().any()), f"edited {options}, and the head is another one")
    along, finite = _along(after, r)
    require(options.get("strength", 1.0) < 1 or not finite or along < ALONG, f"edited {options}, but blocks write {along:.2g} along r")


@torch.no_grad()
def _along(module: PreTrainedModel, r: Tensor) -> tuple[float, bool]:
    """The largest share of what a block writes that lies along r, and whether all that it writes is finite."""
    ids = torch.arange(3, 19)[None] % module.get_input_embeddings().weight.shape[0]
    streams: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, given, out: streams.append(_stream(out) - given[0])) for block in module.model.layers]
    module(ids)
    for hook in hooks:
        hook.remove()
    unit = r / r.norm()
    shares = [((wrote @ unit).abs() / wrote.norm(dim=-1).clamp_min(1e-9)).max() for wrote in streams]
    return float(max(shares)), all(bool(wrote.isfinite().all()) for wrote in streams)


def _stream(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out
