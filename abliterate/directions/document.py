"""directions.json: the quality of each estimated direction, as a typed record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from abliterate.files import Count, Interval, May, Number, Record, Several

Row = Several[Number | None]
Matrix = Annotated[Several[Row], Field(description="[position][activation index].")]
Points = Several[Interval]


class Estimate(Record):
    """One estimator's directions; lists of lists are [position][activation index]."""

    positions: Several[int] = Field(description="Positions that it was computed at.")
    auc: Matrix = Field(description="Share of (target, baseline) pairs in order along the direction.")
    cohens_d: May[Matrix] = Field(default=None, description="Distance of their means along the direction, in standard deviations.")
    norm: Matrix = Field(description="Length of the direction.")
    cosine_keep: Mapping[str, Matrix] = Field(description="Cosine with each keep set's own direction.")
    stability: Row | None = Field(
        description="Cosine of the estimates from two halves of the prompts, last position, by activation index; null without halves."
    )
    share_left: Matrix | None = Field(
        default=None, description="Share of the direction that is left after scoping; null without keep sets."
    )
    ridge: Number | None = Field(
        default=None, validation_alias="lambda", serialization_alias="lambda", description="Ridge penalty of scoping; null without."
    )


class Separation(Record):
    """Where target and baseline are farthest apart."""

    estimator: str = Field(description="The estimator.")
    position: int = Field(description="The position; -1 is the last token.")
    layer: int = Field(description="The block.")


class Components(Record):
    """The sets' vectors in their first two principal components."""

    index: Count = Field(description="The activation index.")
    position: int = Field(description="The position.")
    explained: Several[Number] = Field(description="Share of the variance in each component.")
    target: Points = Field(description="A point for each prompt.")
    baseline: Points = Field(description="A point for each prompt.")
    keep: Mapping[str, Points] = Field(description="By set: a point for each prompt.")


class DirectionsQuality(Record):
    """directions.json: the quality of each estimated direction."""

    positions: Several[int] = Field(description="Positions whose activations were collected; -1 is the last token.")
    layers: Count = Field(description="Number of blocks.")
    held_out: May[Literal["val", "halves"]] = Field(
        default=None,
        description="Prompts on which auc and cohens_d are measured: val, or for an estimate on half of the train prompts the other half.",
    )
    estimators: Mapping[str, Estimate] = Field(description="By name.")
    separation: Separation
    pca: Components | None = Field(description="Null if it was not computed.")
