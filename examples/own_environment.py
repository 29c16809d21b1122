"""Train DreamerV3 on an environment of your own, then load the agent and act.

    python examples/own_environment.py [--steps 3000] [--logdir runs/chase]

Needs `pip install 'fastwm[agents]'`. The same call again continues the run.
"""

import argparse

import gymnasium
import numpy as np
from gymnasium import spaces

import fastwm


class Chase(gymnasium.Env):
    """A point on a line chases a target that jumps at every episode. Reward: minus the distance."""

    observation_space = spaces.Dict({"point": spaces.Box(-1, 1, (1,)), "target": spaces.Box(-1, 1, (1,))})
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.point, self.target = self.np_random.uniform(-1, 1, (2, 1)).astype(np.float32)
        self.time = 0
        return self.observation(), {}

    def step(self, action):
        self.point = np.clip(self.point + 0.2 * action, -1, 1).astype(np.float32)
        self.time += 1
        reward = -float(abs(self.point - self.target)[0])
        return self.observation(), reward, False, self.time == 25, {}  # a time limit truncates, it does not terminate

    def observation(self):
        return {"point": self.point, "target": self.target}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--logdir", default="runs/chase")
    options = parser.parse_args()

    agent = fastwm.train(
        "dreamer_v3", env=Chase, logdir=options.logdir, preset="cartpole", steps=options.steps, num_envs=4,
        batch_size=8, agent={"imag_length": 10},
    )  # fmt: skip
    score = fastwm.evaluate(options.logdir, episodes=8, env=Chase)
    print(f"mean return {score['mean']:.2f} over {score['episodes']} episodes")

    env = fastwm.make_env(Chase, num_envs=2)
    obs, state = env.reset(), None
    for _ in range(5):
        action, state = agent.act(obs, state, mode="eval")
        obs = env.step(action)
    print("distance after five actions:", np.abs(obs["point"] - obs["target"]).ravel().round(2))


if __name__ == "__main__":
    main()
