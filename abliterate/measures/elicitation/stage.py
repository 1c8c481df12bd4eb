"""Elicitation as part of an audit or a comparison: what is asked, and its files in the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase

from abliterate.compute.session import Session
from abliterate.config import AuditConfig
from abliterate.errors import InputError
from abliterate.files import write_json
from abliterate.measures.elicitation.contexts import joint_of
from abliterate.measures.elicitation.likelihoods import FactSequences
from abliterate.measures.elicitation.matching import MatchedPrompt, Siblings
from abliterate.measures.parts.elicitation import ElicitedScores
from abliterate.measures.parts.sets import Side
from abliterate.prompts.asked import whole_sets
from abliterate.prompts.promptset import PromptSet
from abliterate.prompts.read import TWINS, load_set
from abliterate.runs.folder import ELICITATION, RunFolder
from abliterate.terminal.progress import stage


@dataclass(frozen=True)
class Inquiry:
    """The facts to score, matched once: both models of a comparison are asked the same pairs."""

    matched: Sequence[MatchedPrompt]

    def check_readable(self, session: Session) -> None:
        """Raise InputError if the model can't read a sequence; needs no weights."""
        tokenizer = session.tokenizer()
        session.context.check(FactSequences.of(tokenizer, self.matched).ids, 0, tokenizer)

    def scores(self, folder: RunFolder, session: Session, side: Side) -> ElicitedScores:
        """The scores of one model, as stored in the run folder; the model is loaded only if they aren't there yet."""

        def make() -> ElicitedScores:
            asked = FactSequences.of(session.tokenizer(), self.matched)
            with stage(f"elicitation: facts read by the {side} model", asked.work) as advance:
                return asked.measured(session.model, advance)

        return folder.stage(f"elicitation ({side})", ELICITATION[side], make, write_json, ElicitedScores.read)


def inquiry_of(config: AuditConfig, groups: Sequence[PromptSet], session: Session | None) -> Inquiry | None:
    """The facts to score of the prompts that are asked; None without --elicit (which the settings refuse for a server, so there is a
    session). False facts are taken from the whole sets, so that they don't depend on --limit and --split.

    Raises InputError if no prompt has facts, if no fact has a sibling, or if the model can't read them.
    """
    if not config.elicit or session is None:
        return None
    if not any(prompt.facts for group in groups for prompt in group):
        raise InputError(
            "--elicit: no prompt that is asked has facts; give a set with them (censorship, censorship-control), or leave it out"
        )
    inquiry = Inquiry(Siblings(_pool(config), _lengths(session.tokenizer())).matched(groups))
    if not any(each.facts for each in inquiry.matched):
        raise InputError(
            "--elicit: no fact of these prompts has a fact of another topic beside it that could be false; give prompts of several topics"
        )
    inquiry.check_readable(session)
    return inquiry


def _pool(config: AuditConfig) -> list[PromptSet]:
    """The whole sets, and the bundled twins of bundled ones."""
    pool = {group.name: group for group in whole_sets(config)}
    twins: Mapping[str, str] = {**TWINS, **{twin: name for name, twin in TWINS.items()}}
    for name in config.prompts:
        if name in twins and any(prompt.facts for prompt in pool[name]):
            pool.setdefault(twins[name], load_set(twins[name]))
    return list(pool.values())


def _lengths(tokenizer: PreTrainedTokenizerBase) -> Callable[[str, str], int]:
    """The number of tokens of a fact inside a text of its language."""

    @cache
    def length(fact: str, lang: str) -> int:
        return len(tokenizer(joint_of(lang) + fact, add_special_tokens=False)["input_ids"])

    return length
