"""How tools descend: what Muon steps and what stays with AdamW."""

import pytest
import torch

from restoration_env.errors import UnknownName
from restoration_env.tools.networks import build_network
from restoration_env.tools.optimizers import FloatMuon, ToolOptimizer, orthogonal


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


MANNER = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}


def stepped(kind, *, double=False):
    """A wide and a tall matrix after three steps along fixed gradients; the second has none in the second step."""
    random = torch.Generator().manual_seed(2)
    matrices = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in ((6, 40), (24, 8))]
    optimizer = kind(matrices, **MANNER)
    for step in range(3):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=random)
        if step == 1:
            matrices[1].grad = None
        optimizer.step()
    return matrices, optimizer


def test_muon_in_float32_steps_as_that_of_torch_does_but_for_rounding_to_bfloat16():
    (ours, _), (theirs, _) = stepped(FloatMuon), stepped(torch.optim.Muon)
    start = torch.randn((6, 40), generator=torch.Generator().manual_seed(2))
    for matrix, other in zip(ours, theirs, strict=True):
        size = 0.02 * 0.2 * max(matrix.shape) ** 0.5 / min(matrix.shape) ** 0.5  # of an entry of one step, about
        torch.testing.assert_close(matrix, other, atol=0.05 * size, rtol=0.0)
    assert (ours[0] - start).abs().mean() > 1e-3


def test_muon_in_float32_goes_on_from_the_state_of_that_of_torch():
    _, theirs = stepped(torch.optim.Muon)
    _, ours = stepped(FloatMuon)
    ours.load_state_dict(theirs.state_dict())
    first, second = (next(iter(optimizer.state.values()))["momentum_buffer"] for optimizer in (ours, theirs))
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5), (7, 7)])
def test_singular_values_are_brought_near_one_and_directions_kept(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    how = torch.optim.Muon([torch.nn.Parameter(matrix)]).param_groups[0]
    result = orthogonal(matrix, how)
    assert result.shape == shape
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    in_place = left.mT @ result @ right.mT  # diagonal, if the directions are the same
    values = in_place.diagonal()
    assert values.min() > 0.5 and values.max() < 1.5
    torch.testing.assert_close(in_place, values.diag(), atol=1e-4, rtol=0.0)
    assert not orthogonal(torch.zeros(shape), how).any()


@pytest.mark.parametrize("native", [True, False])
def test_float32_is_taken_where_a_processor_imitates_bfloat16(native, monkeypatch):
    monkeypatch.setattr("restoration_env.devices.multiplies_bfloat16", lambda: native)
    muon = ToolOptimizer(build_network("3-layer"), "muon", 1e-3, 1e-2).parts[1][0]
    assert isinstance(muon, FloatMuon) is not native
