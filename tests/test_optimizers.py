"""How tools descend: what Muon steps and what stays with AdamW."""

import pytest
import torch

from restoration_env.errors import UnknownName
from restoration_env.tools.networks import build_network
from restoration_env.tools.optimizers import ToolOptimizer


def trained(kind, steps=3, state=None, start=None, rates=(1e-3, 1e-2)):
    torch.manual_seed(0)
    network = build_network("8-layer")
    if start:
        network.load_state_dict(start)
    optimizer = ToolOptimizer(network, kind, *rates)
    if state:
        optimizer.load_state_dict(state)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        (network(images) - 0.5).square().mean().backward()
        optimizer.step()
    return network.state_dict(), optimizer.state_dict()


def test_the_convolutions_inside_step_along_an_orthogonal_matrix():
    before, after = trained("muon", steps=0)[0], trained("muon", steps=1)[0]
    plain = trained("adamw", steps=1)[0]

    def evenness(state, name):
        """The median singular value of a step over the largest."""
        values = torch.linalg.svdvals((state[name] - before[name]).flatten(1))
        return (values.median() / values.max()).item()

    for name in ("squeeze.weight", "block1.0.weight", "expand.weight"):
        assert evenness(after, name) > 0.6 > evenness(plain, name)


def test_first_and_last_convolution_and_biases_stay_with_adamw():
    muon, adamw = trained("muon", steps=1)[0], trained("adamw", steps=1)[0]
    for name, value in muon.items():
        same = name.endswith("bias") or name in ("conv1.weight", "conv8.weight")
        assert torch.equal(value, adamw[name]) == same, name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_ends_as_one_that_was_not_killed(kind):
    whole, _ = trained(kind, 4)
    half, state = trained(kind, 2)
    resumed, _ = trained(kind, 2, state, half)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_share_of_nothing_changes_nothing(kind):
    before, after = trained(kind, 0)[0], trained(kind, 3, rates=(0.0, 0.0))[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_another_optimizer_is_refused_with_those_there_are():
    with pytest.raises(UnknownName, match="adamw, muon"):
        ToolOptimizer(build_network("3-layer"), "sgd", 1e-3)
