"""`train_sb3`, `restoration-env train sb3` and what they write: judged, resumed, loaded, refused, published."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make, make_vec
from hub import hub  # noqa: F401
from stable_baselines3 import PPO

from restoration_env.agents import SB3Config, SB3Policy, SB3VecEnv, load_sb3_policy, train_sb3
from restoration_env.agents.policies import roll_out
from restoration_env.agents.sb3 import ALGORITHMS, RestoreFeatures, algorithm_names, make_model
from restoration_env.agents.sb3_hub import push_to_hub
from restoration_env.agents.sb3_policy import save_sb3_policy
from restoration_env.benchmarks.comparison import evaluate
from restoration_env.benchmarks.suites import Suite
from restoration_env.distortions import recipe
from restoration_env.episodes import Episodes
from restoration_env.errors import InvalidArgument
from restoration_env.files import load_checkpoint
from restoration_env.images import damaged_patches, load_images
from restoration_env.registry import load_toolbox

SIZE = 16
SMALL = dict(steps=192, envs=4, patch_size=SIZE, severity="noise", evaluate_every=64, validation_images=8)
TINY = load_toolbox("tiny")


def envs(count: int = 2) -> SB3VecEnv:
    return SB3VecEnv(make_vec(count, patch_size=SIZE))


def begun(count: int = 8, size: int = SIZE, max_steps: int = 3, toolbox=TINY) -> Episodes:
    pool = load_images("bundled", "validation").fitting(size)
    clean, damaged = damaged_patches(pool, torch.arange(count), recipe("noise"), size)
    episodes = Episodes(toolbox, max_steps=max_steps)
    episodes.begin(damaged, clean)
    return episodes


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    """The files of a short training, and its card."""
    path = tmp_path_factory.mktemp("ppo") / "ppo.zip"
    return path, train_sb3(SB3Config(**SMALL), path, toolbox="tiny")


@pytest.fixture(scope="module")
def recurrent():
    """An untrained recurrent model whose memory decides: its weights are large."""
    torch.manual_seed(0)
    model = make_model("recurrent-ppo", envs(), seed=0)
    with torch.no_grad():
        for name, weights in model.policy.named_parameters():
            if "lstm" in name or "action_net" in name:
                weights.normal_(0, 1.0)
    return model


@pytest.mark.parametrize("algo", algorithm_names())
def test_every_algorithm_of_the_table_learns_and_is_saved_and_loaded(algo: str, tmp_path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model(algo, envs(), seed=0, **({"learning_starts": 16} if "dqn" in algo else {"n_steps": 16}))
        before = [parameter.clone() for parameter in model.policy.parameters()]
        model.learn(80)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    card = save_sb3_policy(tmp_path / "model", model, algo, TINY, {"seconds": 1.0})
    assert (card["algorithm"], card["tools"], card["max_steps"], card["patch_size"]) == (algo, 3, 3, SIZE)
    chains = []
    for policy in (
        SB3Policy(model, TINY),
        load_sb3_policy(tmp_path / "model.safetensors", TINY),
        load_sb3_policy(tmp_path / "model.zip"),
    ):
        episodes = begun()
        roll_out(policy, episodes)
        chains.append(episodes.toolchain)
    assert torch.equal(chains[0], chains[1]) and torch.equal(chains[0], chains[2])
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors", ".zip"]


def test_the_table() -> None:
    assert len(set(algorithm_names())) == len(ALGORITHMS) == 6
    json.dumps([row.network for row in ALGORITHMS])  # goes into cards
    with pytest.raises(InvalidArgument, match="^algo must be one of dqn, qrdqn, a2c, ppo, maskable-ppo, recurrent-ppo"):
        make_model("ddpg", envs())


@pytest.mark.parametrize(("count", "expected"), [(1, 256), (3, 96), (16, 16), (64, 4), (512, 1)])
def test_any_number_of_environments_shares_the_steps_between_updates(count: int, expected: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_model("ppo", envs(count)).n_steps == expected


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_the_features_begin_with_contrast(algo: str) -> None:
    policy = make_model(algo, envs()).policy
    found = [part for part in policy.modules() if isinstance(part, RestoreFeatures)]
    assert found
    for part in found:
        first = part.eyes.convs[0].weight
        torch.testing.assert_close(first.mean(dim=(1, 2, 3)), torch.zeros(len(first)), atol=1e-6, rtol=0)
        seen = part(
            {"image": torch.rand(2, 3, SIZE, SIZE), "last_action": torch.eye(4)[:2], "steps_left": torch.eye(4)[:2]}
        )
        assert seen.shape == (2, part.features_dim) and bool(torch.isfinite(seen).all())
        assert not torch.allclose(seen[0, :32], seen[1, :32])


def test_features_of_other_observations_are_refused() -> None:
    space = make(patch_size=SIZE).observation_space
    with pytest.raises(InvalidArgument, match="^observation_space must be that of Restore-v0"):
        RestoreFeatures(space)  # channels last


def test_training_keeps_the_best_policy(trained) -> None:
    path, card = trained
    assert card["validation_gain_db"] == max(row["gain"] for row in card["history"])
    assert [row["steps"] for row in card["history"]] == [64, 128, 192, 256]  # rollouts of 256 steps are whole
    assert card["training"]["steps_done"] == 256 and card["training"]["algo"] == "ppo"
    assert sorted(p.name for p in path.parent.iterdir()) == ["ppo.json", "ppo.safetensors", "ppo.zip"]
    policy = load_sb3_policy(path.with_suffix(".safetensors"))
    assert policy.card["validation_gain_db"] == card["validation_gain_db"] and policy.name == "ppo"
    episodes = begun()
    row = evaluate(policy, TINY, Suite("noise", episodes.clean, episodes.damaged, "bundled", ""))
    assert row["gain"] == pytest.approx(card["validation_gain_db"], abs=1e-3) and row["policy"] == "ppo"


def test_the_zip_is_as_sb3_saves_it(trained) -> None:
    model = PPO.load(trained[0], env=envs())
    assert model.num_timesteps == 256 and model.learn(64).num_timesteps >= 64


def test_the_same_seed_trains_the_same(trained, tmp_path) -> None:
    again = train_sb3(SB3Config(**SMALL), tmp_path / "again", toolbox="tiny")
    other = train_sb3(SB3Config(**SMALL, seed=1), tmp_path / "other", toolbox="tiny")
    weights = [
        load_sb3_policy(p).model.state_dict()
        for p in (
            trained[0].with_suffix(".safetensors"),
            tmp_path / "again.safetensors",
            tmp_path / "other.safetensors",
        )
    ]
    assert again["history"] == trained[1]["history"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert other["training"]["seed"] == 1


def interrupted(path: Path, config: SB3Config, at: int, **arguments) -> list[int]:
    """Train until ``at`` steps, then press Ctrl-C; the steps that were reported."""
    seen = []

    def report(progress) -> None:
        seen.append(progress.steps)
        if progress.steps >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sb3(config, path, toolbox="tiny", report=report, **arguments)
    return seen


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_an_interrupted_training_goes_on(algo: str, tmp_path) -> None:
    path, config = tmp_path / "model", SB3Config(**{**SMALL, "algo": algo, "steps": 512})
    assert interrupted(path, config, 300)[-1] == 300
    assert [p.name for p in tmp_path.iterdir()] == ["model.checkpoint"]
    seen = []
    card = train_sb3(config, path, toolbox="tiny", report=lambda p: seen.append(p.steps))
    assert seen[0] == 304 and card["training"]["steps_done"] >= 512
    assert [row["steps"] for row in card["history"]][:6] == [64, 128, 192, 256, 320, 384]
    assert not (tmp_path / "model.checkpoint").exists() and load_sb3_policy(path.with_suffix(".zip"), TINY)


def test_a_checkpoint_holds_what_was_learned(tmp_path) -> None:
    path, config = tmp_path / "model", SB3Config(**{**SMALL, "steps": 1024})
    interrupted(path, config, 300)  # after the first updates, at 256
    state = load_checkpoint(path.with_suffix(".checkpoint"))
    interrupted(path, config, 304)  # before any more
    again = load_checkpoint(path.with_suffix(".checkpoint"))
    for name, weights in state["model"]["policy"].items():
        assert torch.equal(weights, again["model"]["policy"][name]), name
    assert state["updates"] == again["updates"] > 0 and again["seconds"] > state["seconds"]
    assert (
        state["model"]["policy.optimizer"]["state"][0]["step"] == again["model"]["policy.optimizer"]["state"][0]["step"]
    )


def test_checkpoints_are_written_by_the_clock(tmp_path) -> None:
    path, found = tmp_path / "model", []
    train_sb3(
        SB3Config(**SMALL),
        path,
        toolbox="tiny",
        checkpoint_seconds=0.0,
        report=lambda _: found.append(path.with_suffix(".checkpoint").exists()),
    )
    assert all(found) and not path.with_suffix(".checkpoint").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 3}, "seed was 0, is 3"),
        ({"severity": "mild", "steps": 500}, "steps was 1024, is 500; severity was 'noise', is 'mild'"),
        ({"algo": "a2c"}, "algo was 'ppo', is 'a2c'"),
    ],
)
def test_another_configuration_is_refused(changed: dict, said: str, tmp_path) -> None:
    path = tmp_path / "model"
    interrupted(path, SB3Config(**{**SMALL, "steps": 1024}), 4)
    with pytest.raises(InvalidArgument, match=f"^checkpoint must be of the same configuration, got {said}"):
        train_sb3(SB3Config(**{**SMALL, "steps": 1024, **changed}), path, toolbox="tiny")
    with pytest.raises(InvalidArgument, match="tools was 'brighten, darken, blur', is 'scale'"):
        train_sb3(SB3Config(**{**SMALL, "steps": 1024}), path, toolbox="learning")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algo": "sac"}, "algo must be one of dqn, "),
        ({"severity": "bad"}, "severity must be one of "),
        ({"steps": 0}, "steps must be at least 1"),
        ({"envs": -1}, "envs must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_bad_configurations(settings: dict, said: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{said}"):
        SB3Config(**settings)


def test_logs_for_tensorboard(tmp_path) -> None:
    train_sb3(SB3Config(**SMALL), tmp_path / "model", toolbox="tiny", tensorboard=tmp_path / "logs")
    (file,) = (tmp_path / "logs" / "ppo_0").iterdir()
    assert b"validation/gain_db" in file.read_bytes() and b"rollout/gain_db" in file.read_bytes()


def test_a_recurrent_policy_remembers_and_forgets(recurrent) -> None:
    policy, episodes = SB3Policy(recurrent, TINY), begun(32)
    state, starts = None, np.ones(32, bool)
    policy.reset(32)
    differs = False
    for _ in range(3):
        seen = episodes.observation()
        arrays = {name: value.numpy() for name, value in seen.items()}
        expected, state = recurrent.predict(arrays, state=state, episode_start=starts, deterministic=True)
        forgetful, _ = recurrent.predict(arrays, deterministic=True)
        starts = np.zeros(32, bool)
        actions = policy.act(seen)
        assert actions.tolist() == expected.tolist() and actions.dtype == torch.int64
        differs |= actions.tolist() != forgetful.tolist()
        episodes.step(actions.clamp_max(TINY.stop - 1))  # nobody stops
    assert differs  # without the memory it would have acted otherwise
    policy.reset(32)
    first = policy.act(begun(32).observation())
    assert first.tolist() == SB3Policy(recurrent, TINY).act(begun(32).observation()).tolist()


def test_a_policy_may_draw_its_actions() -> None:
    policy = SB3Policy(make_model("ppo", envs(), seed=0), TINY, deterministic=False, name="ppo, drawn")
    seen = begun(64).observation()
    policy.reset(64)
    assert policy.name == "ppo, drawn" and len(set(policy.act(seen).tolist())) > 1


def test_what_a_policy_was_not_trained_for_is_refused(trained, tmp_path) -> None:
    weights = trained[0].with_suffix(".safetensors")
    other, same_count = load_toolbox("learning"), load_toolbox("tiny", ["invert"])
    for file in (weights, trained[0]):
        with pytest.raises(InvalidArgument, match="^toolbox must be the one the policy was trained with") as error:
            load_sb3_policy(file, other)
        assert "tiny (3 tools and stop: brighten, darken, blur), got learning (1 tools and stop: scale)" in str(
            error.value
        )
    policy = load_sb3_policy(weights)
    with pytest.raises(
        InvalidArgument, match=r"^model must be .* with tiny\+invert \(4 tools and stop.*got one for Discrete\(4\)"
    ):
        SB3Policy(policy.model, same_count)
    with pytest.raises(InvalidArgument, match=r"^images must be patches as in the model's training, \(3, 16, 16\)"):
        policy.act(begun(size=24).observation())
    with pytest.raises(InvalidArgument, match="^max_steps must be at most 3, as in the model's training, got 4"):
        policy.act(begun(max_steps=4).observation())


def test_a_model_that_says_nothing_of_its_toolbox(tmp_path) -> None:
    other = SB3VecEnv(make_vec(2, patch_size=36))
    PPO("MultiInputPolicy", other, n_steps=16, batch_size=32).save(tmp_path / "own.zip")
    with pytest.raises(InvalidArgument, match="^toolbox must be given"):
        load_sb3_policy(tmp_path / "own.zip")
    policy = load_sb3_policy(tmp_path / "own.zip", TINY)
    policy.reset(8)
    assert policy.name == "own" and policy.act(begun(size=36).observation()).shape == (8,)


def test_files_that_are_no_policy(tmp_path, trained) -> None:
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    for name in ("bad.zip", "none.zip"):
        with pytest.raises(InvalidArgument, match="^path must be a model that Stable-Baselines3 saved"):
            load_sb3_policy(tmp_path / name)
    with pytest.raises(InvalidArgument, match="^weights must be a safetensors file with its JSON card"):
        load_sb3_policy(tmp_path / "none.safetensors")
    weights = tmp_path / "ppo.safetensors"
    weights.write_bytes(trained[0].with_suffix(".safetensors").read_bytes())
    card = json.loads(trained[0].with_suffix(".json").read_text())
    for changed, said in (
        ({"algorithm": "dqn"}, "path must be weights that fit the network"),
        ({"algorithm": "x"}, "algo must be one of dqn"),
    ):
        weights.with_suffix(".json").write_text(json.dumps({**card, **changed}))
        with pytest.raises(InvalidArgument, match=f"^{said}"):
            load_sb3_policy(weights)
    card.pop("algorithm")
    weights.with_suffix(".json").write_text(json.dumps(card))
    for refuses in (load_sb3_policy, lambda path: push_to_hub(path, "me/x")):
        with pytest.raises(InvalidArgument, match="^path must be the weights of a Stable-Baselines3 policy"):
            refuses(weights)


def test_a_package_that_is_not_installed(monkeypatch, trained) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(
        InvalidArgument, match=r"^algo must be one whose package is installed .sb3_contrib: pip install"
    ) as error:
        make_model("qrdqn", envs())
    assert str(error.value).endswith("got 'qrdqn'")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InvalidArgument, match="^repo_id must be used with huggingface_hub installed"):
        push_to_hub(trained[0], "me/ppo")
