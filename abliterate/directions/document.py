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
    """One estimator's directions."""

    positions: Several[int]
    auc: Matrix
    cohens_d: May[Matrix] = None
    norm: Matrix
    cosine_keep: Mapping[str, Matrix]
    stability: Row | None
    share_left: Matrix | None = None
    ridge: Number | None = Field(default=None, validation_alias="lambda", serialization_alias="lambda")


class Separation(Record):
    """Where target and baseline are farthest apart."""

    estimator: str
    position: int
    layer: int


class Components(Record):
    """The sets' vectors in their first two principal components."""

    index: Count
    position: int
    explained: Several[Number]
    target: Points
    baseline: Points
    keep: Mapping[str, Points]


class DirectionsQuality(Record):
    """directions.json: the quality of each estimated direction."""

    positions: Several[int]
    layers: Count
    held_out: May[Literal["val", "halves"]] = Field(
        default=None,
        description="Prompts on which auc and cohens_d are measured: val, or for an estimate on half of the train prompts the other half.",
    )
    estimators: Mapping[str, Estimate]
    separation: Separation
    pca: Components | None
