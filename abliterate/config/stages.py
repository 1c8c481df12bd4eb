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
        description="Prompt sets on which refusals are removed: bundled (harmful, censorship, borderline), a file, "
        "or hf:DATASET[:CONFIG]:SPLIT:COLUMN.",
        panel=Panel.MAIN,
        rank=2,
        names="prompts",
        from_record=True,
    )
    baseline: Sets = setting(
        (),
        description="Prompt sets to contrast the target with. Default: the bundled set of the target's harmless twins, or, if there is "
        "none, the set named harmless.",
        panel=Panel.MAIN,
        names="prompts",
        from_record=True,
    )
    limit: int | None = setting(
        None,
        ge=4,
        description="Maximum number of prompts per set: N to estimate directions (train split), N for the final test (test split), N/3 to "
        "choose the edit (val split). Default: all prompts.",
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
        description="Number of tokens, counted from the end of the prompt, at which activations are collected. Default: the tokens that "
        "the chat template appends; with --keep also the token before them.",
        panel=Panel.CHOICE,
        rank=7,
        from_record=True,
    )
    keep: Sets = setting(
        (),
        description="Prompt sets on which refusals must stay. Their directions are taken out of the target's direction, and the command "
        "run tests whether these refusals stay.",
        panel=Panel.MAIN,
        rank=3,
        names="prompts",
        from_record=True,
    )
    harmless: str = setting(
        "harmless",
        description="Set of ordinary prompts. Drift is measured on them, and the mean of their activations is projected out of the "
        "directions.",
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
        description="Share of a direction to remove from the weights (1: all of it). The command edit removes this share, or with --plan "
        "this share of the plan's strengths; run chooses strengths up to it.",
        panel=Panel.EDIT,
        from_record=True,
    )
    embedding: Literal["auto", "edit", "skip", "untie"] = setting(
        "auto",
        description="What to do with the token embedding. edit: edit it; skip: leave it unchanged; untie: edit it and give the "
        "unembedding a copy of the old weights; auto: edit it if it is not tied to the unembedding and one direction serves all blocks, "
        "otherwise skip it.",
        panel=Panel.EDIT,
        from_record=True,
    )
    norms: Literal["free", "keep"] = setting(
        "free",
        description="What happens to the norms of the columns of edited matrices. free: the edit shrinks them; keep: each column is "
        "scaled back to its old norm.",
        panel=Panel.EDIT,
        from_record=True,
    )


class SelectConfig(Config):
    """How the edit is chosen."""

    candidates: int = setting(
        4,
        ge=2,
        le=200,
        description="Number of edits to try in which one block's direction is removed from all blocks. Edits that remove from each block "
        "its own direction are tried as well.",
        panel=Panel.CHOICE,
        rank=4,
        from_record=True,
    )
    max_kl: float = setting(
        0.1,
        gt=0,
        description="Soft bound on drift, which is the KL of the first token on harmless prompts, in nats. To be chosen, an edit that "
        "exceeds the bound by 10 % must leave 10 points less of the target than an edit within it. With --tune search or off, "
        "candidates above the bound are dropped before that; if too few remain, the bound for candidates is doubled.",
        panel=Panel.CHOICE,
        rank=2,
        from_record=True,
    )
    max_layer: float = setting(
        0.8,
        gt=0,
        le=1,
        description="Blocks above this share of the depth are left out when one block's direction is tried for all blocks.",
        panel=Panel.CHOICE,
        rank=6,
        from_record=True,
    )
    estimators: Sets = setting(
        DEFAULT_ESTIMATORS,
        min_length=1,
        description=f"Estimators of the directions to try: {', '.join(ESTIMATORS)}.",
        panel=Panel.CHOICE,
        rank=5,
        from_record=True,
    )
    min_share: float = setting(
        0.2,
        ge=0,
        le=1,
        description="Smallest share of its length that a direction must keep when the keep sets' directions are taken out of it. A "
        "direction that keeps less is not used.",
        panel=Panel.CHOICE,
        rank=6,
        from_record=True,
    )
    tune: Literal["auto", "gradient", "search", "off"] = setting(
        "auto",
        description="How to improve strengths and directions. gradient: by gradients through the frozen model; search: by trying many "
        "edits, for models that are too large for gradients; off: not at all; auto: gradient if the whole model is on one device, "
        "otherwise off.",
        panel=Panel.CHOICE,
        rank=3,
        from_record=True,
    )
    tune_steps: int = setting(
        6,
        ge=1,
        le=1000,
        description="Gradient steps in each phase of the tuner. Each phase gives drift more weight than the phase before.",
        panel=Panel.CHOICE,
        rank=3,
        from_record=True,
    )
    tune_directions: Literal["on", "off", "scoped"] = setting(
        "on",
        description="Whether the tuner changes the directions too. on: it does; scoped: it does, but they stay orthogonal to the keep "
        "sets' directions; off: it changes only the strengths.",
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
        description="Which edit to take from the Pareto front, which trades what is left of the target against drift. quality gives drift "
        "the most weight, removal the least.",
        panel=Panel.CHOICE,
        rank=1,
        from_record=True,
    )
    trials: int = setting(
        64,
        ge=1,
        le=100_000,
        description="Number of edits that the search tries (--tune search).",
        panel=Panel.CHOICE,
        rank=8,
        from_record=True,
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
