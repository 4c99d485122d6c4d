"""How a network that restores in a single pass descends: the same for a tool, a single network and a critic.

The objective is the mean PSNR itself. The optimiser is AdamW or Muon, the gradients are clipped, the weights are
averaged, and of the averages that were judged the best is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from restoration_env.files import check_same_configuration
from restoration_env.metrics import psnr
from restoration_env.tools.optimizers import ToolOptimizer
from restoration_env.winograd import with_winograd
from restoration_env.workers import in_parallel

ENOUGH = 1e-5  # a mean squared error (50 dB) below which nothing is left to restore, as published
_PART, _SMALL_PART = 32, 8  # images at once, on a processor; by Winograd's algorithm


class Descent(Protocol):
    """The settings that say how weights descend; every training configuration of such a network has them."""

    @property
    def optimizer(self) -> str:
        """A kind of `restoration_env.tools.optimizers.ToolOptimizer`."""

    @property
    def learning_rate(self) -> float:
        """At the peak of the schedule."""

    @property
    def muon_rate(self) -> float:
        """Muon's learning rate at the peak."""

    @property
    def averaging(self) -> float:
        """Decay of the weight average."""

    @property
    def convolutions(self) -> str:
        """How a processor computes them in float32: one of `restoration_env.winograd.CONVOLUTIONS`."""


@torch.no_grad()
def mean_gain(network: nn.Module, clean: Tensor, damaged: Tensor) -> float:
    """Mean PSNR gain in dB of a network over the damaged patches."""
    outputs = torch.cat([network(part) for part in damaged.split(_PART)])
    return (psnr(outputs, clean) - psnr(damaged, clean)).mean().item()


class RestoringRun:
    """The state of a training run: all that a checkpoint holds.

    Args:
        network: damaged images (N, 3, H, W) in [0, 1] to the same shape, with its first weights.
        how: the optimiser and its rates.
        identity: what a checkpoint must agree on.
        device: where everything runs.
        precision: "float32", or "bfloat16" for autocast.

    Attributes:
        average: the averaged weights, which are judged and kept.
        history: iteration and validation gain in dB of each judgement.
        best: the best averaged weights that were judged; the first ones before any were.
    """

    def __init__(
        self,
        network: nn.Module,
        how: Descent,
        identity: Mapping[str, Any],
        device: torch.device | str,
        precision: str,
    ) -> None:
        self.identity, self.device, self.precision = dict(identity), torch.device(device), precision
        self.network: nn.Module = network.train().to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        part = _PART
        if how.convolutions == "winograd":
            part = _SMALL_PART
            with_winograd(self.network)
        # A processor computes few images at a time faster; batch normalisation must see all of them together.
        normalised = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        self.part = part if self.device.type == "cpu" and not normalised else None
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(how.averaging)
        # The running means of batch normalisation belong to the weights they were seen with: averaged like them.
        self.average = torch.optim.swa_utils.AveragedModel(self.network, multi_avg_fn=decay, use_buffers=True).eval()
        self.optimizer = ToolOptimizer(self.network, how.optimizer, how.learning_rate, how.muon_rate, weight_decay=1e-4)
        self.iteration, self.seconds, self.history = 0, 0.0, list[tuple[int, float]]()
        self.best_gain, self.best = -math.inf, self._averaged()

    def _averaged(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.average.module.state_dict().items()}

    def descend(self, clean: Tensor, damaged: Tensor, share: float) -> float:
        """One optimiser step; the weights stay if the loss is no number.

        Args:
            clean: float (N, 3, H, W) in [0, 1].
            damaged: the same shape.
            share: of the peak learning rates.

        Returns:
            The loss, the negative mean PSNR in dB.
        """
        self.optimizer.zero_grad()
        value = self._backward(clean, damaged)
        if math.isfinite(value):
            nn.utils.clip_grad_norm_(self.network.parameters(), 20.0)
            self.optimizer.step(share)
            self.average.update_parameters(self.network)
        self.iteration += 1
        return value

    def _backward(self, clean: Tensor, damaged: Tensor) -> float:
        """The loss, its gradients left with the weights: parts of the batch on all threads, summed in their order."""
        weights = [weight for weight in self.network.parameters() if weight.requires_grad]
        part = self.part or len(clean)
        parts = zip(clean.split(part), damaged.split(part), strict=True)
        share = 10.0 / len(clean)
        value = 0.0
        for loss, gradients in in_parallel([partial(self._of_part, *some, share, weights) for some in parts]):
            value += loss
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)
        return value

    @torch.enable_grad()
    def _of_part(
        self, clean: Tensor, damaged: Tensor, share: float, weights: list[nn.Parameter]
    ) -> tuple[float, tuple[Tensor, ...]]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            restored = self.network(damaged.contiguous(memory_format=torch.channels_last))
        error = (restored.float() - clean).square().mean(dim=(1, 2, 3))
        loss = share * torch.log10(error + ENOUGH).sum()
        gradients = torch.autograd.grad(loss, weights)
        return loss.item(), gradients

    def judge(self, gain: float) -> None:
        """Note a gain in dB of the averaged weights, and keep them if they are the best so far."""
        self.history.append((self.iteration, round(gain, 4)))
        if gain > self.best_gain:
            self.best_gain, self.best = gain, self._averaged()

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "config": self.identity,
            **{name: getattr(self, name).state_dict() for name in ("network", "average", "optimizer")},
            **{name: getattr(self, name) for name in ("best", "best_gain", "history", "iteration", "seconds")},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint of the same configuration; another one is refused."""
        check_same_configuration(state["config"], self.identity)
        for name in ("network", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("best", "best_gain", "history", "iteration", "seconds"):
            setattr(self, name, state[name])
