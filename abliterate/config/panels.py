"""Where a setting stands in --help: what is asked comes first, then what may be told of each part of the work."""

from __future__ import annotations

ASKED, EDIT, CHOICE, MODEL, REPLIES, REPORT, OTHERS = (
    "What is asked",
    "The edit",
    "How it is chosen",
    "The model",
    "Replies",
    "The report",
    "Others",
)
# In the order of --help. What a command writes and reads as its arguments stands in the first panel, what no panel names in the last.
PANELS: dict[str, tuple[str, ...]] = {
    ASKED: (
        "model", "base", "derived", "target", "keep", "prompts", "direction", "plan", "out", "beside", "baseline", "harmless", "reference",
        "limit", "split", "weights_only", "public", "dry_run", "even_so", "license", "estimator", "layer", "position", "judge",
    ),
    EDIT: ("strength", "embedding", "norms", "as_adapter"),
    CHOICE: (
        "prefer", "max_kl", "tune", "tune_steps", "tune_directions", "candidates", "estimators", "max_layer", "min_share", "positions",
        "trials", "study", "seed",
    ),
    MODEL: (
        "revision", "base_revision", "derived_revision", "beside_revision", "dtype", "device", "max_memory", "batch_size", "thinking",
        "layout", "trust_remote_code",
    ),
    REPLIES: (
        "max_new_tokens", "temperature", "settle", "engine", "engine_model", "edited_engine", "derived_engine_model", "concurrency",
        "request_timeout", "patience", "tensor_parallel", "pipeline_parallel", "lm_eval",
    ),
    REPORT: ("margin", "transcripts"),
}  # fmt: skip


def panel_of(name: str) -> str:
    """The panel that an option stands in."""
    return next((panel for panel, names in PANELS.items() if name in names), OTHERS)


def place_of(name: str) -> tuple[int, int]:
    """Where an option stands: its panel's number, and its own in it."""
    panels = list(PANELS.values())
    return next(((i, names.index(name)) for i, names in enumerate(panels) if name in names), (len(panels), 0))
