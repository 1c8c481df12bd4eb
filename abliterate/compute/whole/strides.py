"""How a model's matrices lie in memory: column by column, where a CPU then multiplies them faster with few rows."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

# Numbers whose bytes are a page of memory: columns that far apart fall on the same lines of the cache, and gain nothing.
_PAGE = 1024


def lie_by_columns(module: nn.Module) -> None:
    """Turn the float32 matrices of a model's linear layers over; they stay the same matrices in every other way.

    With 48 to 160 rows, as replies are written in, products are 1.1 to 1.4 times as fast (docs/benchmarks.md). What is tied, such as
    an unembedding, is read by rows elsewhere, and stays.
    """
    held = Counter(id(parameter) for part in module.modules() for parameter in part.parameters(recurse=False))
    for part in module.modules():
        if type(part) is not nn.Linear or held[id(part.weight)] > 1:
            continue
        if part.weight.dtype == torch.float32 and part.weight.shape[0] % _PAGE:
            part.weight.data = part.weight.data.t().contiguous().t()
