"""An edit: the directions to remove for each block and component, and how strongly; reading and writing plan files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from abliterate.errors import InputError
from abliterate.model.layouts import COMPONENTS

Embedding = Literal["edit", "skip", "untie"]
EmbeddingPolicy = Literal["auto", "edit", "skip", "untie"]
_ORTHONORMAL = 1e-6  # deviation that comes from float32 rounding


@dataclass(frozen=True)
class Edit:
    """``direction`` holds k orthonormal rows per block and component; ``strength`` in [0, 1] says how much of them is removed.

    ``embedding`` says whether the token embedding is edited too, which needs one direction for all blocks; ``untie`` edits it
    and keeps its old weights for the unembedding. ``keep_norms`` restores the length of every column of a writer.
    """

    direction: Float[Tensor, "layer component k d_model"]
    strength: Float[Tensor, "layer component"]
    embedding: Embedding
    keep_norms: bool = False

    @property
    def layers(self) -> int:
        return int(self.direction.shape[0])

    @property
    def norms(self) -> str:
        """Whether the norms of the edited matrices are kept: ``keep`` or ``free``."""
        return "keep" if self.keep_norms else "free"

    def scaled(self, strength: float) -> Edit:
        """The same directions, with every strength multiplied by ``strength``."""
        return replace(self, strength=self.strength * strength)

    def embedding_direction(self) -> Float[Tensor, "k d_model"] | None:
        """The directions to remove from the token embedding, or None if it is left alone."""
        if self.embedding == "skip" or not self.strength.any():
            return None
        return self.direction[0, 0]

    @property
    def embedding_strength(self) -> float:
        """The strength for the token embedding: that of the strongest writer."""
        return float(self.strength.max())

    def same_everywhere(self) -> bool:
        """Whether all blocks and components share the same directions."""
        return torch.equal(self.direction, self.direction[:1, :1].expand_as(self.direction))


def unit(direction: Float[Tensor, "*n d_model"], where: str = "direction") -> Float[Tensor, "*n d_model"]:
    """Rows of length one in float32. Raises InputError for a zero or non-finite row."""
    rows = direction.to(torch.float64)
    norms = rows.norm(dim=-1, keepdim=True)
    if not torch.isfinite(norms).all():
        raise InputError(f"{where}: holds NaN or infinite values")
    if (norms == 0).any():
        raise InputError(f"{where}: the direction has length zero, so it removes nothing")
    scaled: Tensor = rows / norms
    return scaled.to(torch.float32)


def edit_from_direction(
    direction: Float[Tensor, " d_model"] | Float[Tensor, "layer d_model"],
    layers: int,
    strength: float | Float[Tensor, "layer component"] = 1.0,
    policy: EmbeddingPolicy = "auto",
    tied: bool = False,
    keep_norms: bool = False,
) -> Edit:
    """An edit that removes one direction (``[d_model]``) or a direction per block from every writer.

    Policy ``auto`` edits the embedding if it is untied and one direction serves all blocks. Raises InputError if ``edit`` or
    ``untie`` is asked for with a direction per block, or if the number of rows is not the number of blocks.
    """
    rows = unit(direction)
    if rows.ndim == 2 and rows.shape[0] != layers:
        raise InputError(f"the direction has {rows.shape[0]} rows, but the model has {layers} blocks")
    if rows.ndim not in (1, 2):
        raise InputError(f"the direction has shape {list(rows.shape)}; give [d_model] or [layer, d_model]")
    one = rows.ndim == 1
    spread = rows.expand(layers, -1) if one else rows
    strengths = torch.as_tensor(strength, dtype=torch.float32).expand(layers, len(COMPONENTS)).clone()
    return Edit(
        direction=spread[:, None, None, :].expand(-1, len(COMPONENTS), 1, -1).contiguous(),
        strength=strengths,
        embedding=resolve_embedding(policy, one, tied),
        keep_norms=keep_norms,
    )


def edit_from_rows(rows: Float[Tensor, "layer k d_model"], strength: Float[Tensor, "layer component"]) -> Edit:
    """An edit that removes the span of k directions at each block, orthonormalised in float64; the embedding is left alone.

    Raises InputError if the directions of a block with non-zero strength are not linearly independent.
    """
    made, lengths = _gram_schmidt(rows)
    if bool((lengths[strength.any(-1)] <= 1e-6 * rows.double().norm(dim=-1).amax()).any()):
        raise InputError("directions of one block are not independent; remove fewer of them")
    made = made[:, None].expand(-1, len(COMPONENTS), -1, -1).contiguous()
    return Edit(made, strength.clone(), "skip")


def _gram_schmidt(rows: Float[Tensor, "*n k d_model"]) -> tuple[Float[Tensor, "*n k d_model"], Float[Tensor, "*n k"]]:
    """Orthonormal float32 rows with the same span, signs kept, and the length of each row after the earlier ones were projected out."""
    q, r = torch.linalg.qr(rows.double().transpose(-1, -2))
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    return (q * diagonal.sign()[..., None, :]).transpose(-1, -2).float(), diagonal.abs()


def whole_edit(layers: int, d_model: int) -> Edit:
    """An edit that touches every writer of every block, used to find out what an edit would touch."""
    return Edit(torch.eye(1, d_model).expand(layers, len(COMPONENTS), 1, d_model), torch.ones(layers, len(COMPONENTS)), "skip")


def resolve_embedding(policy: EmbeddingPolicy, one_direction: bool, tied: bool) -> Embedding:
    """What the policy means for this edit and model. Raises InputError if the embedding can't be edited."""
    if policy == "auto":
        return "edit" if one_direction and not tied else "skip"
    if policy != "skip" and not one_direction:
        raise InputError("the embedding can be edited only if one direction serves all blocks; use --embedding skip")
    return "edit" if policy == "untie" and not tied else policy


def save_edit(edit: Edit, path: Path) -> None:
    """Write a plan file (safetensors)."""
    metadata = {"components": json.dumps(COMPONENTS), "embedding": edit.embedding, "norms": edit.norms}
    save_file({"direction": edit.direction.contiguous(), "strength": edit.strength.contiguous()}, path, metadata)


def load_edit(path: Path) -> Edit:
    """Read and check a plan file. Raises InputError saying what is wrong with it."""
    tensors, metadata = _read(path)
    if set(tensors) == {"direction"}:
        raise InputError(f"{path}: a direction file, not a plan; give it with --direction")
    if set(tensors) != {"direction", "strength"}:
        raise InputError(f"{path}: a plan file holds 'direction' and 'strength'; this one holds {', '.join(tensors) or 'nothing'}")
    direction, strength = tensors["direction"].float(), tensors["strength"].float()
    if direction.ndim != 4 or strength.shape != direction.shape[:2]:
        raise InputError(f"{path}: direction {list(direction.shape)} and strength {list(strength.shape)} don't fit together")
    if _components(metadata) != COMPONENTS or direction.shape[1] != len(COMPONENTS):
        raise InputError(f"{path}: metadata 'components' must be {json.dumps(COMPONENTS)}, and the direction must have one entry for each")
    if 0 in direction.shape:
        raise InputError(f"{path}: direction {list(direction.shape)} is empty; there is nothing to remove")
    if not (torch.isfinite(strength).all() and (strength >= 0).all() and (strength <= 1).all()):
        raise InputError(f"{path}: strengths must lie in [0, 1]")
    embedding, norms = metadata.get("embedding", "skip"), metadata.get("norms", "free")
    if embedding not in ("edit", "skip", "untie"):
        raise InputError(f"{path}: embedding {embedding!r} is not supported; use edit, skip or untie")
    if norms not in ("keep", "free"):
        raise InputError(f"{path}: norms {norms!r} is not supported; use keep or free")
    direction = _orthonormal(direction, (strength > 0) | (embedding != "skip"), path)
    edit = Edit(direction, strength, cast("Embedding", embedding), norms == "keep")
    resolve_embedding(edit.embedding, edit.same_everywhere(), tied=True)
    return edit


def _components(metadata: dict[str, str]) -> tuple[str, ...]:
    try:
        return tuple(json.loads(metadata.get("components", "null")) or ())
    except (ValueError, TypeError, RecursionError):
        return ()


def _orthonormal(direction: Tensor, used: Tensor, path: Path) -> Tensor:
    """The used rows made orthonormal in float32 (a plan file may hold half precision); unchanged if they are already, so that a loaded
    edit is saved as the same edit. Raises InputError if they are far from orthonormal."""
    wide = direction[used].double()
    gram = wide @ wide.transpose(-1, -2)
    identity = torch.eye(direction.shape[2], dtype=gram.dtype).expand_as(gram)
    if not torch.allclose(gram, identity, atol=1e-2):
        raise InputError(f"{path}: the rows of each direction must be orthonormal")
    if torch.allclose(gram, identity, rtol=0, atol=_ORTHONORMAL):
        return direction
    made = direction.clone()
    made[used] = _gram_schmidt(direction[used])[0]
    return made


def load_direction(path: Path) -> Tensor:
    """The tensor of a direction file, any float type, [d_model] or [layer, d_model]. Raises InputError."""
    tensors, _ = _read(path)
    if "direction" not in tensors:
        raise InputError(f"{path}: no tensor 'direction'; it has {', '.join(tensors) or 'none'}")
    direction = tensors["direction"]
    if "strength" in tensors and direction.ndim == 4:
        raise InputError(f"{path}: a plan file (it holds strengths); give it with --plan")
    if not direction.is_floating_point() or direction.ndim not in (1, 2):
        raise InputError(f"{path}: 'direction' must be a float tensor of shape [d_model] or [layer, d_model]")
    unit(direction, str(path))
    return direction


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
