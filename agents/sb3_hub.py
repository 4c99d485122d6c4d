"""Trained policies on the Hugging Face hub: safetensors, the card and a page; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from restoration_env.agents.sb3_policy import SB3Policy, load_sb3_policy
from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights
from restoration_env.toolbox import Toolbox

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_WEIGHTS, _CARD, _PAGE = "policy.safetensors", "policy.json", "README.md"


def push_to_hub(
    path: str | Path, repo_id: str, *, endpoint: str | None = None, token: str | None = None, private: bool = False
) -> str:
    """Publish a policy that `save_sb3_policy` wrote.

    Args:
        path: its safetensors, with the card beside them.
        repo_id: "user/name", made if it is not there; by the hub's habit the name is ``<algo>-Restore-v0``.
        endpoint: address of the hub; None for the usual one.
        token: None for the one that ``hf auth login`` stored.
        private: make a repository that only you see.

    Returns:
        The address of the commit.

    Raises:
        InvalidArgument: if the file is no such policy, huggingface_hub is not installed, or the hub refuses.
    """
    path = Path(path).with_suffix(".safetensors")
    _, card = read_weights(path)
    if "algorithm" not in card:
        raise InvalidArgument("path", "the weights of a Stable-Baselines3 policy", path)
    files: dict[str, bytes] = {
        _WEIGHTS: path.read_bytes(),
        _CARD: (json.dumps(card, indent=2) + "\n").encode(),
        _PAGE: _page(repo_id, card).encode(),
    }
    with _hub(repo_id, endpoint, token) as api:
        from huggingface_hub import CommitOperationAdd

        api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        return str(
            api.create_commit(repo_id, operations, commit_message=f"{card['algorithm']} on Restore-v0").commit_url
        )


def load_from_hub(
    repo_id: str,
    toolbox: Toolbox | None = None,
    *,
    revision: str | None = None,
    device: str = "cpu",
    endpoint: str | None = None,
    token: str | None = None,
    cache: str | Path | None = None,
) -> SB3Policy:
    """A policy that `push_to_hub` published; nothing in its files is executed.

    Args:
        repo_id: "user/name".
        toolbox: as for `load_sb3_policy`.
        revision: a branch, tag or commit; None for the newest.
        device: where it computes.
        endpoint: address of the hub; None for the usual one.
        token: None for the one that ``hf auth login`` stored.
        cache: folder for downloads; None for the hub's own.

    Raises:
        InvalidArgument: if there is no such policy, or as `load_sb3_policy`.
    """
    with _hub(repo_id, endpoint, token) as api:
        found = [api.hf_hub_download(repo_id, name, revision=revision, cache_dir=cache) for name in (_CARD, _WEIGHTS)]
    return load_sb3_policy(found[-1], toolbox, device=device)


@contextmanager
def _hub(repo_id: str, endpoint: str | None, token: str | None) -> Iterator[HfApi]:
    """The hub's interface; what it refuses becomes one sentence."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ModuleNotFoundError:
        expected = "used with huggingface_hub installed (pip install 'restoration-env[baselines]')"
        raise InvalidArgument("repo_id", expected, repr(repo_id)) from None
    try:
        yield HfApi(endpoint=endpoint, token=token)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        expected = "a repository on the hub that can be reached and holds a policy"
        raise InvalidArgument("repo_id", expected, f"{repo_id!r}: {' '.join(str(error).split())}") from None


def _page(repo_id: str, card: Mapping[str, Any]) -> str:
    """The repository's page: what the hub reads, and what people do."""
    tags = ["reinforcement-learning", "image-restoration", "Restore-v0", card["algorithm"], "stable-baselines3"]
    head = ["---", "library_name: restoration-env", f"license: {str(card['licence']).lower()}", "tags:"]
    gain = card.get("validation_gain_db")
    said = "" if gain is None else f" Its mean gain on validation patches was {gain:+.2f} dB PSNR."
    return "\n".join(
        [
            *head,
            *(f"- {tag}" for tag in tags),
            "---",
            f"# {repo_id.rpartition('/')[2]}",
            "",
            f"A {card['algorithm']} policy for `Restore-v0` with the {card['tools']} tools of"
            f" {card['toolbox']}, at most {card['max_steps']} steps.{said}",
            "",
            "```python",
            "from restoration_env.agents import load_from_hub",
            "",
            f'policy = load_from_hub("{repo_id}")',
            "```",
            "",
        ]
    )
