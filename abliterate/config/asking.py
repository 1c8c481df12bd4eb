"""The settings of the commands that ask models: run, plan, audit and compare."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from abliterate.config.base import Sets, is_url, server_url, with_weights
from abliterate.config.model import ComputeConfig, ModelConfig
from abliterate.config.replies import EngineConfig, EvaluateConfig
from abliterate.config.setting import SENDS, Panel, setting
from abliterate.config.stages import CollectConfig, EditConfig, SelectConfig
from abliterate.errors import InputError

Which = Literal["base", "derived"]
Split = Literal["train", "val", "test", "all"]
# Settings that two commands share; each class copies them.
_REFERENCE: str | None = setting(
    None,
    min_length=1,
    description="A model without the censorship. The report measures how close the model is to it before and after the change.",
    panel=Panel.MAIN,
    names="model",
    from_record=True,
)
_MARGIN: float = setting(
    0.05,
    gt=0,
    lt=1,
    description="Largest acceptable change (0.05: 5 points): a fall of refusals on a keep set, or a rise of withheld or of broken "
    "replies on a set that should be answered. The report tests each one (non-inferiority).",
    panel=Panel.REPORT,
    rank=1,
    from_record=True,
)
_LIMIT: int | None = setting(
    None, ge=1, description="Maximum number of prompts per set. Default: all.", panel=Panel.MAIN, rank=20, from_record=True
)
_SEED: int = setting(
    0, ge=0, le=2**32 - 1, description="Random seed for the sampled replies (--samples).", panel=Panel.REPLIES, rank=2, from_record=True
)
_SPLIT: Split = setting(
    "test",
    description="Split to ask. If a file has no splits, all its prompts are asked.",
    panel=Panel.MAIN,
    rank=20,
    from_record=True,
)
_ELICIT: bool = setting(
    False,
    description="Measure also whether the model knows what it withholds: how likely it finds the prompts' facts beside matched false ones.",
    panel=Panel.MAIN,
    rank=20,
    from_record=True,
)
_NEEDS_LIKELIHOODS = (
    "--elicit needs the likelihoods of given texts, which servers don't give: leave it out, or give a folder, a Hub id or a short name"
)


def _not_a_server(given: str | None) -> str | None:
    """A reference must have its weights here."""
    return None if given is None else with_weights(given, "--reference")


class RunConfig(EngineConfig, EvaluateConfig, EditConfig, SelectConfig, CollectConfig):
    """Settings of run: the whole pipeline."""

    margin: float = _MARGIN
    edited_engine: str | None = setting(
        None,
        description="URL of the server of the edited checkpoint, if it is not the one in --engine.",
        panel=Panel.REPLIES,
        rank=5,
        may_change=True,
        risk=SENDS,
    )
    reference: str | None = _REFERENCE

    _reference_is_here = field_validator("reference")(_not_a_server)

    @field_validator("edited_engine")
    @classmethod
    def _edited_engine_is_a_server(cls, given: str | None) -> str | None:
        return None if given is None else server_url(given, "--edited-engine")

    @model_validator(mode="after")
    def _both_models_are_asked_alike(self) -> RunConfig:
        if self.edited_engine is not None and not is_url(self.engine):
            raise InputError(
                f"--edited-engine is a server, but --engine is {self.engine}: either serve both models or leave --edited-engine out"
            )
        return self


class PlanConfig(RunConfig):
    """Settings of plan: those of the run that it describes."""


class AuditConfig(EngineConfig, EvaluateConfig, ModelConfig):
    """Settings of audit: ask one model and report; nothing is edited."""

    model: str = setting(
        min_length=1,
        description="The model: a folder, a Hub id, a short name, or the URL of an OpenAI-compatible server.",
        panel=Panel.MAIN,
        rank=1,
        names="model",
        from_record=True,
    )
    prompts: Sets = setting(
        min_length=1,
        description="Prompt sets to ask (names, files, hf:DATASET:SPLIT:COLUMN).",
        panel=Panel.MAIN,
        rank=4,
        names="prompts",
        from_record=True,
    )
    limit: int | None = _LIMIT
    split: Split = _SPLIT
    elicit: bool = _ELICIT
    seed: int = _SEED

    @field_validator("model")
    @classmethod
    def _model_is_one(cls, given: str) -> str:
        return server_url(given, "--model") if is_url(given) else given

    @model_validator(mode="after")
    def _likelihoods_are_there(self) -> AuditConfig:
        if self.elicit and is_url(self.model):
            raise InputError(_NEEDS_LIKELIHOODS)
        return self

    @model_validator(mode="after")
    def _one_server_is_asked(self) -> AuditConfig:
        if is_url(self.model) and self.engine not in ("transformers", self.model):
            raise InputError("--model is a server's URL, and that server generates the replies: leave --engine out")
        return self


class CompareConfig(EngineConfig, EvaluateConfig, ComputeConfig):
    """Settings of compare: two models, before and after a change; their replies and their weights."""

    base: str = setting(
        min_length=1,
        description="The model before the change: a folder, a Hub id, a short name, or the URL of an OpenAI-compatible server.",
        panel=Panel.MAIN,
        rank=1,
        names="model",
        from_record=True,
    )
    derived: str = setting(
        min_length=1,
        description="The model after the change, given in the same way.",
        panel=Panel.MAIN,
        rank=1,
        names="model",
        from_record=True,
    )
    base_revision: str | None = setting(
        None, description="Branch, tag or commit of the base on the Hub.", panel=Panel.MODEL, rank=1, from_record=True
    )
    derived_revision: str | None = setting(
        None, description="Branch, tag or commit of the derived model on the Hub.", panel=Panel.MODEL, rank=1, from_record=True
    )
    derived_engine_model: str | None = setting(
        None,
        min_length=1,
        description="Name of the derived model on the server.",
        panel=Panel.REPLIES,
        rank=5,
        names="served",
        may_change=True,
        from_record=True,
    )
    prompts: Sets = setting(
        (),
        description="Prompt sets to ask (names, files, hf:DATASET:SPLIT:COLUMN).",
        panel=Panel.MAIN,
        rank=4,
        names="prompts",
        from_record=True,
    )
    keep: Sets = setting(
        (),
        description="More prompt sets to ask. The report tests whether refusals on them stayed.",
        panel=Panel.MAIN,
        rank=3,
        names="prompts",
        from_record=True,
    )
    limit: int | None = _LIMIT
    split: Split = _SPLIT
    seed: int = _SEED
    margin: float = _MARGIN
    weights_only: bool = setting(
        False, description="Compare only the weights; ask no prompts.", panel=Panel.MAIN, rank=20, from_record=True
    )
    elicit: bool = _ELICIT
    reference: str | None = _REFERENCE

    _reference_is_here = field_validator("reference")(_not_a_server)

    @field_validator("base")
    @classmethod
    def _base_is_one(cls, given: str) -> str:
        return server_url(given, "--base") if is_url(given) else given

    @field_validator("derived")
    @classmethod
    def _derived_is_one(cls, given: str) -> str:
        return server_url(given, "--derived") if is_url(given) else given

    @model_validator(mode="after")
    def _there_is_something_to_do(self) -> CompareConfig:
        if self.weights_only and (is_url(self.base) or is_url(self.derived)):
            raise InputError("--weights-only reads the weights, and a server doesn't show them: give two folders, Hub ids or short names")
        if self.elicit and (is_url(self.base) or is_url(self.derived)):
            raise InputError(_NEEDS_LIKELIHOODS)
        if self.elicit and self.weights_only:
            raise InputError("--elicit asks the models, and --weights-only doesn't: leave one of them out")
        if self.reference is not None and (self.weights_only or is_url(self.base) or is_url(self.derived)):
            raise InputError(
                "--reference compares what the models predict: give two folders, Hub ids or short names, without --weights-only"
            )
        if self.weights_only:
            return self
        if not self.prompts and not self.keep:
            raise InputError("give --prompts or --keep, or --weights-only to ask no prompts")
        names = {self.engine_model, self.derived_engine_model}
        one_server = self.base == self.derived if is_url(self.base) else is_url(self.engine) and not is_url(self.derived)
        if one_server and (len(names) < 2 or None in names):
            raise InputError("one server serves both models: name them with --engine-model and --derived-engine-model")
        return self

    def side(self, which: Which) -> AuditConfig:
        """The settings of an audit of one of the two models. Raises InputError if they don't fit together."""
        of_base = which == "base"
        model = self.base if of_base else self.derived
        shared = {name: getattr(self, name) for name in AuditConfig.model_fields if name in CompareConfig.model_fields}
        own = {
            "model": model,
            "revision": self.base_revision if of_base else self.derived_revision,
            "prompts": self.prompts + self.keep,
            "engine": "transformers" if is_url(model) else self.engine,
            "engine_model": self.engine_model if of_base else self.derived_engine_model,
        }
        return AuditConfig(**{**shared, **own})
