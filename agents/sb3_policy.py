"""A model of Stable-Baselines3 as a policy of this project: how it acts, how it is saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from torch import Tensor

from restoration_env.agents.sb3 import Algorithm, algorithm_class, find_algorithm, policy_settings
from restoration_env.devices import find_device
from restoration_env.errors import InvalidArgument
from restoration_env.files import read_weights, replacing, save_weights
from restoration_env.observations import observation_space
from restoration_env.registry import load_toolbox
from restoration_env.toolbox import Toolbox

_FACTS = "restoration_env"  # under which a model's .zip says what it was trained for


class SB3Policy:
    """Acts as a model of Stable-Baselines3 says, its memory of the episode included.

    Fits wherever a `Policy` does: `roll_out`, `restore_batch`, the comparison of policies.

    Attributes:
        model: the model, or only its policy.
        toolbox: what its actions do.
        name: for tables.
        card: what trained it, or an empty dictionary.
        deterministic: take the likeliest action instead of drawing one.

    Raises:
        InvalidArgument: if the model was trained for another number of actions; the message describes both.
    """

    def __init__(
        self,
        model: BaseAlgorithm | BasePolicy,
        toolbox: Toolbox,
        *,
        name: str = "",
        card: Mapping[str, Any] | None = None,
        deterministic: bool = True,
    ) -> None:
        actions = getattr(model.action_space, "n", 0)
        if not isinstance(model.observation_space, spaces.Dict) or actions != len(toolbox) + 1:
            expected = f"one trained on Restore-v0 with {_described(toolbox.name, toolbox.names)}"
            raise InvalidArgument("model", expected, f"one for {model.action_space}")
        self.model, self.toolbox, self.card = model, toolbox, dict(card or {})
        self.space: spaces.Dict = model.observation_space
        self.name = name or type(model).__name__
        self.deterministic = deterministic
        self._state: tuple[np.ndarray, ...] | None = None
        self._starts = np.ones(0, dtype=bool)

    @property
    def max_steps(self) -> int:
        """The horizon it was trained for."""
        return int(getattr(self.space["steps_left"], "n", 1)) - 1

    def reset(self, count: int) -> None:
        """Forget what was seen: ``count`` new episodes begin."""
        self._state, self._starts = None, np.ones(count, dtype=bool)

    def act(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Actions int64 (N,) for an observation as `Episodes.observation` gives it.

        Raises:
            InvalidArgument: for images of another size or more steps than the model was trained for.
        """
        seen = {name: value.cpu().numpy() for name, value in observation.items()}
        shape, trained = seen["image"].shape[1:], self.space["image"].shape
        if trained is None or shape not in (trained, (trained[2], *trained[:2])):
            raise InvalidArgument("images", f"patches as in the model's training, {trained}", shape)
        if int(seen["steps_left"].max(initial=0)) > self.max_steps:
            raise InvalidArgument(
                "max_steps", f"at most {self.max_steps}, as in the model's training", seen["steps_left"].max()
            )
        actions, self._state = self.model.predict(
            seen, state=self._state, episode_start=self._starts, deterministic=self.deterministic
        )
        self._starts = np.zeros(len(actions), dtype=bool)
        return torch.as_tensor(actions, device=observation["last_action"].device).long()


def save_sb3_policy(
    path: str | Path, model: BaseAlgorithm, algo: str, toolbox: Toolbox, card: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a model as Stable-Baselines3 does (.zip), and its policy as safetensors with a card.

    Args:
        path: of any suffix; the files take ``.zip``, ``.safetensors`` and ``.json``.
        model: made by `make_model`.
        algo: its name in the table.
        toolbox: what it was trained with.
        card: what trained it and how well it does.

    Returns:
        The whole card.
    """
    row, path = find_algorithm(algo), Path(path)
    image, steps = model.observation_space["image"], model.observation_space["steps_left"]  # type: ignore[index]
    facts = {
        "algorithm": row.name,
        "network": dict(row.network),
        "toolbox": toolbox.name,
        "tools": len(toolbox),
        "tool_names": list(toolbox.names),
        "patch_size": int(image.shape[-1]),
        "max_steps": int(steps.n) - 1,
        "parameters": sum(p.numel() for p in model.policy.parameters()),
        "licence": "MIT",
        **card,
    }
    setattr(model, _FACTS, facts)
    with replacing(path.with_suffix(".zip")) as temporary:
        model.save(temporary)
    save_weights(path.with_suffix(".safetensors"), policy_weights(model.policy), facts)
    return facts


def load_sb3_policy(path: str | Path, toolbox: Toolbox | None = None, *, device: str = "cpu") -> SB3Policy:
    """A trained policy.

    Args:
        path: safetensors with their card, as `save_sb3_policy` writes them; or a model's ``.zip``, of any algorithm.
            **Loading a .zip runs code that is in it, as Stable-Baselines3 does: load only files you trust.**
        toolbox: the tools to use; None for those it was trained with, by name.
        device: where it computes: "cpu", "cuda", "cuda:N" or "auto".

    Raises:
        InvalidArgument: if the file is not such a policy, or one for another toolbox or number of actions; the
            message describes both.
    """
    where, path = find_device(device), Path(path)
    if path.suffix == ".zip":
        policy, card = _read_zip(path, where)
    else:
        tensors, card = read_weights(path)
        if "algorithm" not in card:
            raise InvalidArgument("path", "the weights of a Stable-Baselines3 policy", path)
        policy = _filled(find_algorithm(card["algorithm"]), card, tensors, path).to(where)
    if toolbox is None:
        if "toolbox" not in card:
            raise InvalidArgument("toolbox", "given, as the file does not say which it was trained with", "None")
        toolbox = load_toolbox(card["toolbox"], device=where)
    if card.get("tool_names", list(toolbox.names)) != list(toolbox.names):
        expected = f"the one the policy was trained with, {_described(card['toolbox'], card['tool_names'])}"
        raise InvalidArgument("toolbox", expected, _described(toolbox.name, toolbox.names))
    return SB3Policy(policy, toolbox, name=card.get("algorithm", path.stem), card=card)


def policy_weights(policy: BasePolicy) -> dict[str, Tensor]:
    """Copies of a policy's weights, those that parts of it share under their first name only."""
    weights: dict[int, tuple[str, Tensor]] = {}
    for name, value in policy.state_dict(keep_vars=True).items():
        weights.setdefault(id(value), (name, value.detach().clone()))
    return dict(weights.values())


def _filled(row: Algorithm, card: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> BasePolicy:
    """The policy that a card describes, with these weights."""
    size = card["patch_size"]
    parts = observation_space(size, card["tools"], card["max_steps"]).spaces
    seen = spaces.Dict({**parts, "image": spaces.Box(0, 255, (3, size, size), np.uint8)})
    maker: Any = algorithm_class(row).policy_aliases[row.policy]
    expected = "weights that fit the network their card describes"
    try:
        policy = maker(seen, spaces.Discrete(card["tools"] + 1), _no_schedule, **policy_settings(card["network"]))
    except TypeError as error:  # settings of another algorithm's network
        raise InvalidArgument("path", expected, f"{path}: {error}") from None
    own = policy_weights(policy)
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in tensors.items()}:
        raise InvalidArgument("path", expected, path)
    policy.load_state_dict(tensors, strict=False)  # the names left out are second names of the same weights
    return policy


def _read_zip(path: Path, device: torch.device) -> tuple[BasePolicy, dict[str, Any]]:
    try:
        data, parameters, _ = load_from_zip_file(path, device=device)
        made: dict[str, Any] = data or {}
        policy: BasePolicy = made["policy_class"](
            made["observation_space"], made["action_space"], _no_schedule, **made["policy_kwargs"]
        )
        weights: Any = parameters["policy"]
        policy.load_state_dict(weights)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidArgument("path", "a model that Stable-Baselines3 saved", f"{path}: {error}") from None
    return policy.to(device), dict(made.get(_FACTS, {}))


def _no_schedule(progress_remaining: float) -> float:
    return 0.0


def _described(name: str, tools: Any) -> str:
    return f"{name} ({len(tools)} tools and stop: {', '.join(tools)})"
