"""How a critic learns to doubt itself: on damaged images it restores, and sees whether they got worse."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration_env.agents.critic import RestoringCritic
from restoration_env.metrics import psnr
from restoration_env.schedules import cosine

_UPDATES, _SAMPLE, _RATE = 4_000, 256, 1e-3


@torch.no_grad()
def experience(critic: RestoringCritic, clean: Tensor, damaged: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """What a critic sees of damaged images, and which of them its own restoration makes worse.

    Args:
        critic: in evaluation.
        clean: float (N, 3, H, W) in [0, 1].
        damaged: the same shape.
        precision: "float32", or "bfloat16" for autocast.

    Returns:
        Summaries, float16 (N, F), and bool (N,), on the processor.
    """
    with torch.autocast(clean.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        summaries = torch.cat([critic.summary(part) for part in damaged.split(32)])
        restored = torch.cat([critic.restorer(part).float().clamp(0.0, 1.0) for part in damaged.split(32)])
    return summaries.half().cpu(), (psnr(restored, clean) < psnr(damaged, clean)).cpu()


def teach_doubt(critic: RestoringCritic, summaries: Tensor, worse: Tensor, seed: int) -> None:
    """Let a critic learn the chance that restoration makes an image worse.

    Args:
        critic: whose doubt is taught; the rest of it stays.
        summaries: of damaged images, as `experience` gives them.
        worse: which of them got worse, bool (N,).
        seed: of the first weights and of what is drawn.
    """
    device, seen = critic.unknown.device, summaries.float()
    critic.centre.copy_(seen.mean(0))
    critic.spread.copy_(seen.std(0, correction=0) + 1e-4)
    share = min(max(worse.float().mean().item(), 1e-4), 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for layer in (critic.doubt[0], critic.doubt[3]):
            layer.reset_parameters()  # type: ignore[operator]
        torch.nn.init.constant_(critic.doubt[3].get_parameter("bias"), math.log(share / (1.0 - share)))
        optimizer = torch.optim.AdamW(critic.doubt.parameters(), _RATE, weight_decay=0.2)
        critic.doubt.requires_grad_(True).train()
        for update in range(_UPDATES):
            rows = torch.randint(len(seen), (_SAMPLE,))
            told = critic.doubts(seen[rows].to(device))
            loss = F.binary_cross_entropy_with_logits(told, worse[rows].to(device).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = _RATE * cosine(update, _UPDATES)
            optimizer.step()
    critic.doubt.requires_grad_(False).eval()
