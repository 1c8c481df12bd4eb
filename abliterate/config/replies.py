"""The settings of the final test: what generates the replies, and how much of them the report shows."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError

from abliterate.config.base import Config, Sets, is_url, server_url
from abliterate.config.setting import SENDS, Panel, setting
from abliterate.errors import InputError

Transcripts = Literal["full", "excerpt", "none"]


class EvaluateConfig(Config):
    """Settings of the final test."""

    max_new_tokens: int = setting(
        64, ge=1, description="Maximum length of a reply, in tokens.", panel=Panel.REPLIES, rank=1, from_record=True
    )
    samples: int = setting(
        0,
        ge=0,
        le=100,
        description="Number of sampled replies, besides the greedy one, to each prompt that lists facts; the report says which of the "
        "greedy answer's claims they support.",
        panel=Panel.REPLIES,
        rank=2,
        from_record=True,
    )
    lm_eval: Sets = setting(
        (),
        description="Tasks of lm-evaluation-harness (mmlu, gsm8k, ...) to run on the models.",
        panel=Panel.REPLIES,
        rank=20,
        names="file",
        risk="its tasks run their own code",
    )
    transcripts: Transcripts = setting(
        "excerpt",
        description="How much of each reply to show in report.html.",
        panel=Panel.REPORT,
        may_change=True,
        from_record=True,
    )


class ServerConfig(Config):
    """How a server is asked, whether it generates replies or judges them."""

    concurrency: int = setting(
        16,
        ge=1,
        le=4096,
        description="Maximum number of simultaneous requests to a server.",
        panel=Panel.REPLIES,
        may_change=True,
        from_record=True,
    )
    request_timeout: int = setting(
        600,
        ge=1,
        description="Seconds to wait for one reply of a server before the request is sent again.",
        panel=Panel.REPLIES,
        may_change=True,
        from_record=True,
    )
    patience: int = setting(
        600,
        ge=0,
        description="Seconds to wait for a server that does not answer. After that the command stops; it can be resumed.",
        panel=Panel.REPLIES,
        may_change=True,
        from_record=True,
    )


class EngineConfig(ServerConfig):
    """What generates the replies of the final test."""

    engine: str = setting(
        "transformers",
        description="What generates the replies: transformers, vllm, or the URL of an OpenAI-compatible server (http://host:8000/v1).",
        panel=Panel.REPLIES,
        rank=4,
        risk=SENDS,
    )
    engine_model: str | None = setting(
        None,
        min_length=1,
        description="Name of the model on the server. Default: the served model that matches the local one.",
        panel=Panel.REPLIES,
        rank=4,
        names="served",
        may_change=True,
        from_record=True,
    )
    tensor_parallel: int = setting(
        1, ge=1, description="Number of GPUs over which vllm splits each layer.", panel=Panel.REPLIES, from_record=True
    )
    settle: bool = setting(
        False,
        description="Stop a reply early when it is a clear refusal. This is faster, but some outcomes may change.",
        panel=Panel.REPLIES,
        rank=3,
        from_record=True,
    )
    pipeline_parallel: int = setting(
        1,
        ge=1,
        description="Number of parts into which vllm splits the layers. On several nodes, give the number of nodes.",
        panel=Panel.REPLIES,
        from_record=True,
    )

    @field_validator("engine")
    @classmethod
    def _engine_is_known(cls, given: str) -> str:
        if is_url(given) or "@" in given:  # also without a scheme: the message must not repeat a password
            return server_url(given, "--engine")
        if given not in ("transformers", "vllm"):
            raise PydanticCustomError("engine", "it must be transformers, vllm, or a server's URL (http://host:8000/v1)")
        return given

    @model_validator(mode="after")
    def _only_replies_that_are_written_here_are_cut(self) -> EngineConfig:
        if self.settle and (self.engine != "transformers" or is_url(getattr(self, "model", ""))):
            raise InputError(
                "--settle works only if this process generates the replies (a local model and --engine transformers): leave it out"
            )
        return self
