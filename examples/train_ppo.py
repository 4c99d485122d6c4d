"""Train PPO of Stable-Baselines3 on Restore-v0, sixteen episodes in one batch, and say what it gains."""

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

from restoration_env.agents import RestoreFeatures, SB3VecEnv, ScaledRewards


def main(steps: int = 100_000, envs: int = 16, **arguments) -> float:
    """Train on the environment with these arguments; returns the mean gain in dB on validation images."""
    batch = VecMonitor(SB3VecEnv(gym.make_vec("Restore-v0", envs, **arguments)))
    network = dict(features_extractor_class=RestoreFeatures, net_arch=[64], ortho_init=False)
    settings = dict(n_steps=256 // envs, batch_size=32, n_epochs=4, gamma=1.0, ent_coef=0.01, learning_rate=5e-4)
    model = PPO("MultiInputPolicy", ScaledRewards(batch, 10.0), policy_kwargs=network, **settings)
    model.learn(steps)
    model.save("ppo.zip")

    judge = VecMonitor(SB3VecEnv(gym.make_vec("Restore-v0", envs, split="validation", **arguments)))
    return evaluate_policy(model, judge, n_eval_episodes=128)[0]


if __name__ == "__main__":
    print(f"mean gain {main():+.2f} dB")
