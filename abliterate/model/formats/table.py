"""The stored number formats that can be read and edited, and those that are refused by their names. Adding one: CONTRIBUTING.md."""

from __future__ import annotations

from typing import Any

from abliterate.errors import InputError
from abliterate.model.formats.format import StoredFormat
from abliterate.model.formats.fp8 import BlockFp8
from abliterate.model.formats.fp8_tensor import TensorFp8
from abliterate.model.formats.mxfp4 import Mxfp4
from abliterate.model.formats.plain import PLAIN
from abliterate.model.index import TensorInfo

# Asked in this order; an unquantised checkpoint is PLAIN.
FORMATS: tuple[StoredFormat, ...] = (BlockFp8(), TensorFp8(), Mxfp4())
# Names of the quantisation methods whose weights can't be edited exactly.
_REFUSED = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors", "aqlm": "AQLM",
    "hqq": "HQQ", "quanto": "Quanto", "torchao": "torchao", "eetq": "EETQ", "modelopt": "ModelOpt", "auto-round": "AutoRound",
    "bitnet": "BitNet", "fbgemm_fp8": "FBGEMM FP8", "vptq": "VPTQ", "spqr": "SpQR", "higgs": "HIGGS", "fp_quant": "FP-Quant",
}  # fmt: skip


def format_of_config(settings: Any) -> StoredFormat:
    """The format that a config's ``quantization_config`` names. Raises InputError, without the folder's name, if it can't be edited."""
    if not settings:
        return PLAIN
    known = settings if isinstance(settings, dict) else {}
    found = next((made for one in FORMATS if (made := one.of_config(known)) is not None), None)
    if found is not None:
        return found
    method = str(known.get("quant_method", "unknown"))
    if method == "fp8":
        raise InputError("FP8 weights without block scales (weight_block_size) can't be edited exactly; give a bf16 checkpoint")
    raise InputError(
        f"the weights are quantised ({_REFUSED.get(method, method)}), which can't be edited exactly; give the unquantised checkpoint "
        "(bf16, fp16, fp32, FP8 with a scale a block or a matrix, or MXFP4), and quantise the result again"
    )


def format_of(info: TensorInfo, stated: StoredFormat) -> StoredFormat:
    """The format of a stored tensor: the one that the config states, else the one that alone gives its type a meaning, else plain."""
    if stated is not PLAIN and stated.holds(info):
        return stated
    return next((one for one in FORMATS if info.dtype in one.types), PLAIN)


def matrix_of(name: str) -> str:
    """The matrix that a stored tensor is a part of, in whatever format; a name of no format's part is returned unchanged."""
    found = (one.matrix_of_companion(name) or one.matrix(name) for one in FORMATS)
    return next((matrix for matrix in found if matrix != name), name)
