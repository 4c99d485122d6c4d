"""Files that are either whole or not there: atomic writing, and weights with a card beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restoration_env.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes its place, on failure nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON with two-space indentation, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_weights(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write safetensors and, beside them, a JSON card that holds their sha256."""
    from safetensors.torch import save

    path = Path(path)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with replacing(path) as temporary:
        temporary.write_bytes(content)  # with the permissions of any file; safetensors' own are for the owner alone
    write_json(path.with_suffix(".json"), {**card, "sha256": hashlib.sha256(content).hexdigest()})


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read safetensors and their card.

    Raises:
        InvalidArgument: if a file is missing or the weights are not those the card describes.
    """
    from safetensors.torch import load

    path = Path(path)
    card_path = path.with_suffix(".json")
    for file in (path, card_path):
        if not file.is_file():
            raise InvalidArgument("weights", "a safetensors file with its JSON card beside it", f"no {file}")
    content = path.read_bytes()
    try:
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgument("weights", "a file with a JSON card", f"{card_path}: {error}") from None
    if not isinstance(card, dict):
        raise InvalidArgument("weights", "a file with a card that is a JSON object", card_path)
    if hashlib.sha256(content).hexdigest() != card.get("sha256"):
        raise InvalidArgument("weights", f"the file that {card_path} describes", f"another sha256 in {path}")
    return load(content), card


def save_checkpoint(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write the state of a run (tensors, numbers, strings and containers of them), atomically."""
    import torch

    with replacing(path) as temporary:
        torch.save(dict(state), temporary)


def check_same_configuration(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose configuration is not ours.

    Raises:
        InvalidArgument: the message says what changed.
    """
    changed = [
        f"{name} was {theirs.get(name)!r}, is {value!r}" for name, value in ours.items() if theirs.get(name) != value
    ]
    if changed:
        raise InvalidArgument("checkpoint", "of the same configuration", "; ".join(changed))


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing in the file is executed.

    Raises:
        InvalidArgument: if the file is missing or is not a checkpoint.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InvalidArgument("checkpoint", "a file that training wrote", f"{path}: {error}") from None
    if not isinstance(state, dict):
        raise InvalidArgument("checkpoint", "a file that training wrote", f"{path}: a {type(state).__name__}")
    return state
