"""The settings of the stages that find an edit: prompt sets, activations, directions and the choice."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote_plus

from pydantic import field_validator

from abliterate.config.base import Config, Sets, is_url
from abliterate.config.model import ModelConfig
from abliterate.config.setting import Panel, setting
from abliterate.errors import InputError

DEFAULT_ESTIMATORS = ("difference-of-means", "projected")
ESTIMATORS = (*DEFAULT_ESTIMATORS, "winsorised", "geometric-median", "subspace", "probe", "lda", "leace")


class ContrastConfig(Config):
    """The prompt sets whose activations are contrasted."""

    target: Sets = setting(
        ("harmful",),
        min_length=1,
        description="Prompt sets whose refusals are to be removed: bundled (harmful, censorship, borderline), a file, "
        "or hf:DATASET[:CONFIG]:SPLIT:COLUMN.",
        panel=Panel.MAIN,
        rank=2,
        names="prompts",
        from_record=True,
    )
    baseline: Sets = setting(
        (),
        description="Prompt sets to contrast the target with; default: the bundled set that pairs each target prompt "
        "with a harmless twin, else harmless.",
        panel=Panel.MAIN,
        names="prompts",
        from_record=True,
    )
    limit: int | None = setting(
        None,
        ge=4,
        description="Maximum number of prompts per set for estimating directions (train) and for the final test; a "
        "third as many for choosing the edit (val).",
        panel=Panel.MAIN,
        rank=20,
        from_record=True,
    )


class CollectConfig(ContrastConfig, ModelConfig):
    """Settings of collect: activation statistics only."""

    positions: int | None = setting(
        None,
        ge=1,
        le=64,
        description="Number of last prompt tokens at which activations are collected; default: all that the chat template appends, "
        "plus one with --keep.",
        panel=Panel.CHOICE,
        rank=7,
        from_record=True,
    )
    keep: Sets = setting(
        (),
        description="Prompt sets whose refusals must stay: their directions are taken out of the target's, and run tests that they stay.",
        panel=Panel.MAIN,
        rank=3,
        names="prompts",
        from_record=True,
    )
    harmless: str = setting(
        "harmless",
        description="Ordinary prompts: drift is measured on them, and their mean is projected out of the directions.",
        panel=Panel.MAIN,
        names="prompts",
        from_record=True,
    )


class EditConfig(Config):
    """What the edit does to the weights."""

    strength: float = setting(
        1.0,
        ge=0,
        le=1,
        description="Largest share of a direction to remove from the weights (1: all of it); run chooses strengths up to it.",
        panel=Panel.EDIT,
        from_record=True,
    )
    embedding: Literal["auto", "edit", "skip", "untie"] = setting(
        "auto",
        description="Token embedding. edit; skip: leave it; untie: edit it and give the unembedding a copy of the old weights; "
        "auto: edit it if it is not tied and one direction serves all blocks.",
        panel=Panel.EDIT,
        from_record=True,
    )
    norms: Literal["free", "keep"] = setting(
        "free",
        description="Norms of the columns of edited matrices. free: they shrink; keep: restored.",
        panel=Panel.EDIT,
        from_record=True,
    )


class SelectConfig(Config):
    """How the edit is chosen."""

    candidates: int = setting(
        4,
        ge=2,
        le=200,
        description="Number of edits to try that remove one block's direction from all blocks; edits with each "
        "block's own direction are tried too.",
        panel=Panel.CHOICE,
        rank=4,
        from_record=True,
    )
    max_kl: float = setting(
        0.1,
        gt=0,
        description="Soft bound on drift: the KL of the first token on harmless prompts, in nats. Single candidates above it are dropped "
        "(if too few remain, it is doubled). The final edit may exceed it by 10 % only if it leaves 10 points less of "
        "the target, and so on.",
        panel=Panel.CHOICE,
        rank=2,
        from_record=True,
    )
    max_layer: float = setting(
        0.8,
        gt=0,
        le=1,
        description="One block's direction is tried for all blocks only if the block lies below this share of the depth.",
        panel=Panel.CHOICE,
        rank=6,
        from_record=True,
    )
    estimators: Sets = setting(
        DEFAULT_ESTIMATORS,
        min_length=1,
        description=f"How directions are estimated: {', '.join(ESTIMATORS)}.",
        panel=Panel.CHOICE,
        rank=5,
        from_record=True,
    )
    min_share: float = setting(
        0.2,
        ge=0,
        le=1,
        description="A direction is not used if less than this share is left after the keep sets' directions are taken out.",
        panel=Panel.CHOICE,
        rank=6,
        from_record=True,
    )
    tune: Literal["auto", "gradient", "search", "off"] = setting(
        "auto",
        description="How to improve strengths and directions: by gradients through the frozen model, by a search without gradients (for "
        "models too large for them), or not at all. auto: gradients if the model is whole on one device, otherwise off.",
        panel=Panel.CHOICE,
        rank=3,
        from_record=True,
    )
    tune_steps: int = setting(
        6, ge=1, le=1000, description="Gradient steps in each phase of the tuner.", panel=Panel.CHOICE, rank=3, from_record=True
    )
    tune_directions: Literal["on", "off", "scoped"] = setting(
        "on",
        description="Whether the tuner also changes the directions; scoped: yes, but orthogonal to the keep sets' directions.",
        panel=Panel.CHOICE,
        rank=3,
        from_record=True,
    )
    seed: int = setting(
        0,
        ge=0,
        le=2**32 - 1,
        description="Random seed for the tuner, the search and the sampled replies.",
        panel=Panel.CHOICE,
        rank=9,
        from_record=True,
    )
    prefer: Literal["balanced", "quality", "removal"] = setting(
        "balanced",
        description="Which edit of the Pareto front to take: removal gives drift the least weight, quality the most.",
        panel=Panel.CHOICE,
        rank=1,
        from_record=True,
    )
    trials: int = setting(
        64, ge=1, le=100_000, description="Number of edits that the search tries.", panel=Panel.CHOICE, rank=8, from_record=True
    )
    study: str | None = setting(
        None,
        min_length=1,
        description="Where the search keeps its Optuna study, so that several machines can share it: a file, or the URL of a database "
        "(postgresql://user@host/name; its password is read from ABLITERATE_STUDY_PASSWORD).",
        panel=Panel.CHOICE,
        rank=8,
        names="file",
        risk="it writes to a file or a database",
    )

    @field_validator("estimators")
    @classmethod
    def _estimators_are_known(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return known_estimators(given)

    @field_validator("study")
    @classmethod
    def _study_holds_no_password(cls, given: str | None) -> str | None:
        if given is not None and is_url(given) and (":" in given.partition("://")[2].rpartition("@")[0] or _asks_a_password(given)):
            raise InputError("--study: a password belongs in the environment (ABLITERATE_STUDY_PASSWORD), not in the URL")
        return given


def _asks_a_password(url: str) -> bool:
    """Whether the URL's query has a key for a password, also inside a connection string (``odbc_connect=...PWD%3D...``)."""
    query = unquote_plus(unquote_plus(url.partition("?")[2]))
    return re.search(r"(password|passwd|pwd)\s*=", query, re.IGNORECASE) is not None


def known_estimators(given: tuple[str, ...]) -> tuple[str, ...]:
    """The names without repetitions. Raises InputError for a name that is no estimator."""
    for name in given:
        if name not in ESTIMATORS:
            raise InputError(f"--estimators: unknown estimator {name!r}; known are {', '.join(ESTIMATORS)}")
    return tuple(dict.fromkeys(given))
