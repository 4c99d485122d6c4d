"""What became usual since deep recurrent Q-learning: each option does what its paper says."""

import pytest
import torch
from helpers import tiny

from restoration_env.agents.agent import load_agent
from restoration_env.agents.drqn import DRQNConfig, _Run, n_step_returns, train_drqn
from restoration_env.agents.network import DuelingHead, StatisticsNetwork
from restoration_env.agents.replay import EpisodeBatch, PrioritisedReplay
from restoration_env.errors import InvalidArgument
from restoration_env.images import load_images


def test_returns_of_one_step_bootstrap_and_those_of_many_do_not():
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[9.0, 10.0, 20.0]])
    valid = torch.tensor([[True, True, True]])
    one = n_step_returns(rewards, values, valid, 0.5, 1)
    assert one.tolist() == [[1 + 0.5 * 10, 2 + 0.5 * 20, 4]]
    two = n_step_returns(rewards, values, valid, 0.5, 2)
    assert two.tolist() == [[1 + 0.5 * 2 + 0.25 * 20, 2 + 0.5 * 4, 4]]
    for steps in (3, 7):
        assert n_step_returns(rewards, values, valid, 0.5, steps).tolist() == [[1 + 1 + 1, 2 + 2, 4]]


def test_returns_end_where_the_episode_did():
    rewards, values = torch.ones(1, 3), torch.full((1, 3), 100.0)
    stopped = torch.tensor([[True, False, False]])
    for steps in (1, 2, 3):
        assert n_step_returns(rewards, values, stopped, 1.0, steps)[0, 0] == 1.0


def test_a_dueling_head_goes_on_from_a_linear_one_and_folds_into_it():
    torch.manual_seed(0)
    linear, features = torch.nn.Linear(6, 4), torch.randn(5, 6)
    head = DuelingHead(linear)
    torch.testing.assert_close(head(features), linear(features))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.testing.assert_close(head.folded()(features), head(features))
    assert not torch.allclose(head(features), linear(features))


def numbered(count, first=0):
    ids = torch.arange(first, first + count)[:, None]
    return EpisodeBatch(ids[..., None, None, None].to(torch.uint8), ids, ids, ids.float(), ids >= 0)


def test_prioritised_replay_draws_errors_more_often_and_corrects_for_it():
    replay, generator = PrioritisedReplay(8, 1.0), torch.Generator().manual_seed(0)
    replay.add(numbered(4))
    drawn = torch.bincount(replay.draw(4000, generator), minlength=4) / 4000
    assert bool((drawn - 0.25).abs().max() < 0.03)  # nothing is known yet
    replay.update(torch.arange(4), torch.tensor([[0.0], [1.0], [2.0], [float("nan")]]).nan_to_num(5.0))
    drawn = torch.bincount(replay.draw(4000, generator), minlength=4) / 4000
    torch.testing.assert_close(drawn, torch.tensor([0.0, 1.0, 2.0, 5.0]) / 8, atol=0.03, rtol=0)
    weights = replay.weights(torch.tensor([1, 2, 3]), 1.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.5, 0.2]), atol=1e-3, rtol=0)
    replay.add(numbered(2, 4))
    assert bool((replay.priorities[4:6] == replay.priorities.max()).all())  # what is new is seen


def test_priorities_ignore_steps_not_taken():
    replay = PrioritisedReplay(2, 1.0)
    replay.add(numbered(2))
    replay.update(torch.tensor([0, 1]), torch.tensor([[2.0, float("nan")], [1.0, 3.0]]))
    assert replay.priorities.tolist() == pytest.approx([2.001, 0.9 * 3 + 0.1 * 2 + 0.001])


def test_double_learning_values_what_the_learner_prefers():
    goals = {}
    for double in (True, False):
        run = _Run(DRQNConfig(batch=2, replay=2, sample=4, double=double, too_good=200.0), tiny(), "cpu")
        with torch.no_grad():
            for network, best in ((run.learner, 0), (run.target, 1)):
                network.q.weight.zero_()
                network.q.bias.copy_(torch.nn.functional.one_hot(torch.tensor(best), 4).float() * (best + 1))
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 3, 3, 63, 63), generator=generator, dtype=torch.uint8)
        steps = torch.zeros(2, 3, dtype=torch.long)
        run.replay.add(EpisodeBatch(images, steps + 3, steps, steps.float(), steps == 0))
        goals[double] = run.learn()
    # The target gives the learner's action 0 a value of 0, and its own best action 2: that is further from the 1 of
    # the learner, by the discount of 0.99 less.
    assert goals[True] == pytest.approx(0.5) and goals[False] == pytest.approx((2 * 0.5 * 0.98**2 + 0.5) / 3)


@pytest.mark.parametrize(
    "variant",
    [{"double": False}, {"dueling": True}, {"n_step": 2}, {"prioritised": 0.6}, {"network": "statistics"}],
    ids=str,
)
def test_every_variant_trains_and_is_loaded_as_any_agent(variant, tmp_path):
    small = {"episodes": 16, "batch": 8, "warmup": 8, "updates": 1, "sample": 4, "replay": 16, "max_steps": 2}
    settings = DRQNConfig(**small, evaluate_every=1, validation_images=2, **variant)
    photos = load_images("bundled", "train"), load_images("bundled", "validation")
    card = train_drqn(settings, tiny(), *photos, tmp_path / "a.safetensors")
    assert card["images_seen"] == 16 and [row["images"] for row in card["history"]] == [8, 16]
    agent = load_agent(tmp_path / "a.safetensors", toolbox=tiny())
    assert isinstance(agent.network.q, torch.nn.Linear)
    assert isinstance(agent.network, StatisticsNetwork) == (variant.get("network") == "statistics")
    assert agent.restore(torch.rand(2, 3, 63, 63)).actions.shape == (2, 2)


def test_settings_out_of_range_are_refused():
    with pytest.raises(InvalidArgument, match="n_step"):
        DRQNConfig(n_step=0)
    with pytest.raises(InvalidArgument, match="prioritised"):
        DRQNConfig(prioritised=-1.0)
    with pytest.raises(InvalidArgument, match="published, statistics"):
        DRQNConfig(network="large")
