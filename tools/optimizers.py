"""How the networks of tools descend: AdamW, or Muon for the convolutions inside.

Muon (Jordan et al., 2024, as `torch.optim.Muon`) steps along the momentum of a weight matrix made orthogonal, so that
rare directions count as much as frequent ones. A convolution's weight (O, I, H, W) is such a matrix, (O, I * H * W).
The first and the last convolution, which read and write pixels, and all biases stay with AdamW.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from restoration_env.errors import UnknownName

OPTIMIZERS = ("adamw", "muon")


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
            muon = torch.optim.Muon(
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
