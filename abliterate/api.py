"""Stages for use from Python, with simpler arguments than the program's own functions.

Functions that need no wrapper are exported directly: ``abliterate.estimate``, ``abliterate.run`` and so on; see ``abliterate.__all__``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from abliterate.checkpoint.edit import EditResult
from abliterate.checkpoint.edit import edit_checkpoint as edit_folder
from abliterate.checkpoint.verify import verify as verify_folder
from abliterate.compute.context import Context
from abliterate.compute.passes import Intervention, Model, Pass
from abliterate.compute.session import Session
from abliterate.config import ModelConfig
from abliterate.directions.activations import Activations
from abliterate.directions.groups import activations_of
from abliterate.model.agreement import open_checkpoint
from abliterate.model.chat.template import encode, template_positions
from abliterate.model.chat.thinking import decode, opens_thought
from abliterate.model.edit import Edit
from abliterate.model.folder import open_folder
from abliterate.model.source import resolve_model
from abliterate.prompts import Prompt, PromptSet, RoleSets
from abliterate.replies.samples import Asked
from abliterate.replies.transcripts import Transcript, transcript_of
from abliterate.report.card import model_card

Place = str | Path


def load_model(model: Place, config: ModelConfig | None = None) -> Model:
    """Load a model: a folder, a Hub id, or a short name (``smollm2-refuser``); whole, or block by block if it doesn't fit.

    ``config``: further settings, as in ``ModelConfig(model=..., dtype="bfloat16", max_memory="6GiB", thinking="off")``; the first argument
    replaces its ``model``. Raises InputError if there is no such model or it can't be used.
    """
    settings = (config or ModelConfig.model_validate({"model": str(model)})).model_copy(update={"model": str(model)})
    source = resolve_model(settings.model, settings.revision)
    return Session(settings, source.path).model


def collect(model: Model, sets: RoleSets, positions: int | None = None) -> Activations:
    """Means, second moments and last-token vectors of the sets' train prompts, and the val vectors that rank directions.

    ``positions``: number of last tokens per prompt; None: all that the chat template appends. The sets need a target, a baseline and a
    harmless set. Raises InputError if a set is too small.
    """
    return activations_of(model, sets, positions or len(template_positions(model.tokenizer)))


def generate(model: Model, prompts: PromptSet | Iterable[str], max_new_tokens: int = 64, edit: Edit | None = None) -> list[Transcript]:
    """Greedy replies to the prompts, in order; with an ``edit``, those of the edited model, by hooks.

    ``verdict()`` of a transcript is its outcome by the rules.
    """
    asked = prompts if isinstance(prompts, PromptSet) else PromptSet("prompts", tuple(Prompt(str(i), t) for i, t in enumerate(prompts)))
    longest = min(max_new_tokens, model.longest or max_new_tokens)
    Context.of(model.folder).check_prompts(model.tokenizer, {asked.name: asked}, longest)
    encoded, opened = encode(model.tokenizer, [prompt.text for prompt in asked]), opens_thought(model.tokenizer)
    found: dict[int, Transcript] = {}
    for _, places, replies in model.replies([Pass(encoded, Intervention(edit))], max_new_tokens):
        for place, reply in zip(places, replies, strict=True):
            text, cut = decode(model.tokenizer, reply), len(reply) >= longest
            found[place] = transcript_of(Asked(asked.name, asked.prompts[place]), text, len(reply), opened, cut)
    return [found[place] for place in range(len(encoded))]


def edit_checkpoint(model: Place, edit: Edit, out: Place) -> EditResult:
    """Write the edited checkpoint of a model (folder, Hub id, short name) to the new folder ``out``, with its proof.

    Reads one tensor at a time, never the whole model. Raises InputError if the source, the edit or the destination can't be used,
    CheckError if the proof fails; ``out`` does not exist then.
    """
    source = resolve_model(str(model))
    folder, _ = open_checkpoint(source.path)
    return edit_folder(folder, edit, Path(out), source.name, lambda proof: model_card(proof, None), revision=source.revision)


def verify(checkpoint: Place, base: Place | None = None) -> tuple[int, int]:
    """Derive the proof of an edited checkpoint again from its bytes; with its ``base``, every other byte must equal the base's.

    Returns the number of tensors measured and the number compared. Raises CheckError with the first difference.
    """
    known = None if base is None else open_checkpoint(resolve_model(str(base)).path)[0]
    return verify_folder(open_folder(Path(checkpoint)), known)
