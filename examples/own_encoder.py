"""Give DreamerV3 an encoder of your own, and train it with the runner.

    python examples/own_encoder.py [--steps 3000] [--logdir runs/own_encoder]

Needs `pip install 'fastwm[agents]'`. The encoder sees all observations by name and returns tokens. Registered under a
name, the agent is trained, continued, loaded and evaluated as any other.
"""

import argparse
from functools import partial

import torch
from torch import nn

import fastwm
from fastwm.agents import AGENTS, AgentSpec, DreamerV3, DreamerV3Config
from fastwm.nn.spaces import total_width


class Fourier(nn.Module):
    """Sines and cosines of the vector observations, of frequencies 1, 2, 4 and 8, then one linear layer."""

    out_dim = 64

    def __init__(self, obs_space):
        super().__init__()
        self.keys = sorted(obs_space)
        self.linear = nn.Linear(8 * total_width(obs_space), self.out_dim)

    def forward(self, obs):
        x = torch.cat([obs[key].float() for key in self.keys], -1)  # [..., N]
        waves = torch.cat([wave(x * 2**i) for i in range(4) for wave in (torch.sin, torch.cos)], -1)  # [..., 8 N]
        return nn.functional.silu(self.linear(waves))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--logdir", default="runs/own_encoder")
    options = parser.parse_args()
    AGENTS["fourier"] = AgentSpec(partial(DreamerV3, encoder=Fourier), DreamerV3Config)
    sizes = {"deter": 128, "hidden": 32, "stoch": 8, "classes": 8, "units": 32, "depth": 4, "lr": 1e-3, "warmup": 100}
    agent = fastwm.train("fourier", env="cartpole", logdir=options.logdir, steps=options.steps, num_envs=8,
                         batch_size=16, batch_length=16, train_ratio=64.0, agent=sizes)  # fmt: skip
    score = fastwm.evaluate(options.logdir, episodes=8)
    print(f"{type(agent.encoder).__name__}: mean return {score['mean']:.1f} over {score['episodes']} episodes")


if __name__ == "__main__":
    main()
