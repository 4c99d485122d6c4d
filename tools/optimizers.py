"""How the networks of tools descend: AdamW, or Muon for the convolutions inside.

Muon (Jordan et al., 2024, as `torch.optim.Muon`) steps along the momentum of a weight matrix made orthogonal, so that
rare directions count as much as frequent ones. A convolution's weight (O, I, H, W) is such a matrix, (O, I * H * W).
The first and the last convolution, which read and write pixels, and all biases stay with AdamW.

torch's Muon makes a matrix orthogonal in bfloat16. Where a processor imitates that, it takes longer than the network's
gradients, so `FloatMuon` does the same in float32 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from restoration_env.devices import imitates_bfloat16
from restoration_env.errors import UnknownName

OPTIMIZERS = ("adamw", "muon")


class FloatMuon(torch.optim.Muon):
    """`torch.optim.Muon` with Nesterov momentum and steps of AdamW's size, computed in float32 throughout."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there; a closure is not called."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(momentum, group["momentum"]), group)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonal(matrix: Tensor, how: dict[str, Any]) -> Tensor:
    """A matrix with its singular values brought near 1, by the Newton-Schulz iteration of Jordan et al.

    Args:
        matrix: float (A, B).
        how: "ns_coefficients", "ns_steps" and "eps", as `torch.optim.Muon` has them.
    """
    a, b, c = how["ns_coefficients"]
    wide = matrix.T if len(matrix) > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=how["eps"])
    for _ in range(how["ns_steps"]):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if len(matrix) > matrix.shape[1] else wide


class ToolOptimizer:
    """Steps a network's parameters.

    Args:
        network: what to train; its convolutions in the order in which they are applied.
        kind: "adamw" or "muon".
        learning_rate: of AdamW, at the peak of the schedule.
        muon_rate: of Muon, at the peak; its steps are scaled to the size of AdamW's at the same rate.
        weight_decay: of AdamW.

    Raises:
        UnknownName: for another kind.
    """

    def __init__(
        self, network: nn.Module, kind: str, learning_rate: float, muon_rate: float = 0.0, *, weight_decay: float = 1e-5
    ) -> None:
        if kind not in OPTIMIZERS:
            raise UnknownName("optimizer", kind, OPTIMIZERS)
        weights = [p for p in network.parameters() if p.ndim == 4]
        inside = {id(p) for p in weights[1:-1]} if kind == "muon" else set[int]()
        self.parameters = list(network.parameters())
        self.matrices = [
            (p, nn.Parameter(p.detach().reshape(len(p), -1).clone())) for p in self.parameters if id(p) in inside
        ]
        others = [p for p in self.parameters if id(p) not in inside]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(others, learning_rate, weight_decay=weight_decay), learning_rate)
        ]
        if self.matrices:
            muon = (FloatMuon if imitates_bfloat16(self.parameters[0].device) else torch.optim.Muon)(
                [matrix for _, matrix in self.matrices],
                lr=muon_rate,
                weight_decay=0.0,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            )
            self.parts.append((muon, muon_rate))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, share: float = 1.0) -> None:
        """Step along the gradients, with a share of the peak learning rates."""
        for parameter, matrix in self.matrices:
            matrix.copy_(parameter.reshape(matrix.shape))
            matrix.grad = None if parameter.grad is None else parameter.grad.reshape(matrix.shape)
        for optimizer, peak in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = share * peak
            optimizer.step()
        for parameter, matrix in self.matrices:
            parameter.copy_(matrix.view(parameter.shape))

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, besides the network."""
        return {str(number): optimizer.state_dict() for number, (optimizer, _) in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for number, (optimizer, _) in enumerate(self.parts):
            optimizer.load_state_dict(state[str(number)])
