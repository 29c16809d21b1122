"""A training loop of your own, in twenty lines: environments, agent and replay without the runner.

    python examples/own_loop.py [--steps 2000]

Needs `pip install 'fastwm[agents]'`. The runner adds checkpoints, logs, resumption and evaluation to the same calls.
"""

import argparse

import fastwm
from fastwm.agents import DreamerV3, DreamerV3Config
from fastwm.replay import Replay


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args().steps

    env = fastwm.make_env("cartpole", num_envs=8)
    config = DreamerV3Config(deter=128, hidden=32, stoch=8, classes=8, units=32, depth=4, lr=1e-3, warmup=100)
    agent = DreamerV3(env.obs_space, env.act_space, config)
    replay = Replay(100_000, num_envs=8, length=17, latent_keys=agent.latent_keys)  # 16 rows, one of context before

    record, state, ended, total = env.reset(), None, [], 0.0
    for step in range(steps):
        action, state = agent.act(record, state)
        replay.add(record | {"action": action} | agent.latents(state))
        total += record["reward"].sum()
        ended += [step] * int(record["is_last"].sum())
        record = env.step(action)
        if len(replay) >= 256 and step % 4 == 0:
            metrics = agent.update(replay.sample(16), write_back=replay.write_back)
    print(f"{len(ended)} episodes, mean return {total / max(len(ended), 1):.1f}")
    print(f"last update: reconstruction {metrics['loss/rec/obs']:.3f}, value {metrics['dream/value']:.2f}")


if __name__ == "__main__":
    main()
