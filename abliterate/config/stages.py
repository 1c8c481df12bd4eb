"""What each stage of a run can be told."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote_plus

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from abliterate.config.base import Config, Sets, is_url, server_url
from abliterate.config.model import ModelConfig
from abliterate.errors import InputError

Transcripts = Literal["full", "excerpt", "none"]
DEFAULT_ESTIMATORS = ("difference-of-means", "projected")
ESTIMATORS = (*DEFAULT_ESTIMATORS, "winsorised", "geometric-median", "subspace", "probe", "lda", "leace")


class ContrastConfig(Config):
    """What is contrasted with what."""

    target: Sets = Field(("harmful",), min_length=1, description="What should go: prompt sets (names, files, hf:DATASET:SPLIT:COLUMN).")
    baseline: Sets = Field((), description="What the target is contrasted with; default: the bundled target's twin set, else harmless.")
    limit: int | None = Field(None, ge=4, description="At most this many prompts of each set in train and in test, a third of it in val.")


class CollectConfig(ContrastConfig, ModelConfig):
    """Activation statistics alone."""

    positions: int | None = Field(
        None,
        ge=1,
        le=64,
        description="How many last tokens of the prompt; default: all that the chat template appends, and with --keep one more.",
    )
    keep: Sets = Field((), description="What must stay: prompt sets whose refusals are kept out of the directions, and measured.")
    harmless: str = Field("harmless", description="Ordinary prompts: drift is measured on them, their mean is projected out.")


class EditConfig(Config):
    """The edit."""

    strength: float = Field(1.0, ge=0, le=1, description="Share of the component along the direction that is removed.")
    embedding: Literal["auto", "edit", "skip", "untie"] = Field(
        "auto",
        description="Token embedding; auto: edited when untied and one direction serves all blocks; "
        "untie: a tied unembedding keeps its weights.",
    )
    norms: Literal["free", "keep"] = Field("free", description="keep: each column of an edited matrix gets its old length back.")


class EvaluateConfig(Config):
    """The final test."""

    max_new_tokens: int = Field(64, ge=1, description="Length of the generated responses, in tokens.")
    lm_eval: Sets = Field((), description="Tasks of lm-evaluation-harness (mmlu, gsm8k, ...) to score the models in.")
    transcripts: Transcripts = Field("excerpt", description="How much of each reply report.html shows: full, excerpt, none.")


class EngineConfig(Config):
    """What decodes the replies of the final test."""

    engine: str = Field(
        "transformers",
        description="What writes the replies: transformers, vllm, or an OpenAI-compatible server's URL (http://host:8000/v1).",
    )
    engine_model: str | None = Field(None, min_length=1, description="The model's name on the server; default: the one that is the model.")
    concurrency: int = Field(16, ge=1, le=4096, description="Requests under way at once on a server.")
    request_timeout: int = Field(600, ge=1, description="Seconds that a server has for one reply, before it is asked again.")
    patience: int = Field(600, ge=0, description="Seconds that a server may stay away before the run stops, to go on later.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that vllm splits each layer over.")
    settle: bool = Field(False, description="Cut the replies of clear refusals: faster, and now and then another outcome.")
    pipeline_parallel: int = Field(1, ge=1, description="Parts that vllm splits the layers into; of several nodes, their number.")

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, given: str) -> str:
        if is_url(given) or "@" in given:  # a password without its scheme is not repeated either
            return server_url(given, "--engine")
        if given not in ("transformers", "vllm"):
            raise PydanticCustomError("engine", "it must be transformers, vllm, or a server's URL (http://host:8000/v1)")
        return given

    @model_validator(mode="after")
    def _only_replies_that_are_written_here_are_cut(self) -> EngineConfig:
        if self.settle and (self.engine != "transformers" or is_url(getattr(self, "model", ""))):
            raise InputError("--settle cuts replies while they are written here, but another engine writes them: leave it out")
        return self


class SelectConfig(Config):
    """The choice of the edit."""

    candidates: int = Field(4, ge=2, le=200, description="How many single-layer directions are tried (beside the per-layer ones).")
    max_kl: float = Field(
        0.1,
        gt=0,
        description="First-token KL bound on harmless prompts, nats: candidates are filtered by it (relaxed by doubling where nothing "
        "passes), and an edit above it is chosen only where it leaves less of the target by more than it exceeds the bound "
        "(10 % above it: 10 points less).",
    )
    max_layer: float = Field(0.8, gt=0, le=1, description="Single directions come from below this share of the depth.")
    estimators: Sets = Field(DEFAULT_ESTIMATORS, min_length=1, description=f"How directions are estimated: {', '.join(ESTIMATORS)}.")
    min_share: float = Field(
        0.2, ge=0, le=1, description="Share of a direction that must be left beside the keep sets' own; where less is, it is not used."
    )
    tune: Literal["auto", "gradient", "search", "off"] = Field(
        "auto",
        description="How strengths and directions are improved on: by gradients through the frozen model, by a search without them (for "
        "models too large), or not. auto: gradients where the model is held whole.",
    )
    tune_steps: int = Field(8, ge=1, le=1000, description="Gradient steps in each of the tuner's phases.")
    tune_directions: Literal["on", "off", "scoped"] = Field(
        "on", description="Whether the tuner turns the directions too; scoped: only as far as they stay orthogonal to the keep sets' own."
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Of the tuner's and the search's chance.")
    prefer: Literal["balanced", "quality", "removal"] = Field(
        "balanced", description="Which edit of the front is taken: what a nat of drift counts beside what is still withheld."
    )
    trials: int = Field(64, ge=1, le=100_000, description="Edits that the search tries.")
    study: str | None = Field(
        None,
        min_length=1,
        description="Where the search keeps its study, so that several machines can share it: a file, or a database's URL "
        "(postgresql://user@host/name; its password is taken from ABLITERATE_STUDY_PASSWORD).",
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
    """Whether a key of the URL's query is one for a password, also inside a whole connection string (``odbc_connect=...PWD%3D...``)."""
    query = unquote_plus(unquote_plus(url.partition("?")[2]))
    return re.search(r"(password|passwd|pwd)\s*=", query, re.IGNORECASE) is not None


def known_estimators(given: tuple[str, ...]) -> tuple[str, ...]:
    """The names of estimators, each once. Raises InputError for one that is none."""
    for name in given:
        if name not in ESTIMATORS:
            raise InputError(f"--estimators: there is no {name!r}; there are {', '.join(ESTIMATORS)}")
    return tuple(dict.fromkeys(given))
