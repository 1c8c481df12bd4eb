"""The settings of all commands. A field defines the flag, the TOML key and the help text."""

from abliterate.config.asking import AuditConfig, CompareConfig, PlanConfig, RunConfig
from abliterate.config.base import Config, Sets, is_url, server_url, with_weights
from abliterate.config.commands import (
    ChatConfig,
    DirectionsConfig,
    EditCommandConfig,
    JudgeConfig,
    PushConfig,
    ReportConfig,
    ReproduceConfig,
    VerifyConfig,
)
from abliterate.config.model import ComputeConfig, FolderConfig, HeldConfig, ModelConfig, SourceConfig
from abliterate.config.replies import EngineConfig, EvaluateConfig, Transcripts
from abliterate.config.stages import (
    DEFAULT_ESTIMATORS,
    ESTIMATORS,
    CollectConfig,
    ContrastConfig,
    EditConfig,
    SelectConfig,
    known_estimators,
)

__all__ = [
    "DEFAULT_ESTIMATORS",
    "ESTIMATORS",
    "AuditConfig",
    "ChatConfig",
    "CollectConfig",
    "CompareConfig",
    "ComputeConfig",
    "Config",
    "ContrastConfig",
    "DirectionsConfig",
    "EditCommandConfig",
    "EditConfig",
    "EngineConfig",
    "EvaluateConfig",
    "FolderConfig",
    "HeldConfig",
    "JudgeConfig",
    "ModelConfig",
    "PlanConfig",
    "PushConfig",
    "ReportConfig",
    "ReproduceConfig",
    "RunConfig",
    "SelectConfig",
    "Sets",
    "SourceConfig",
    "Transcripts",
    "VerifyConfig",
    "is_url",
    "known_estimators",
    "server_url",
    "with_weights",
]
