"""Load the weights of the official DreamerV3 code into our agent, and act with them.

    python examples/load_official_weights.py [FILE.npz]

Needs `pip install 'fastwm[agents]'`. FILE holds the parameters of a checkpoint by their official names, such as
`params0/dyn/dyngru/kernel`; the default is a recording in tests/golden with small networks. The sizes must be those
of the checkpoint; an error names every parameter that does not fit.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces

from fastwm.agents import DreamerV3, load_official
from fastwm.agents.official_sizes import official_config

FILE = Path(__file__).parent.parent / "tests/golden/dreamerv3_vector_continuous.npz"


def main() -> None:
    with np.load(sys.argv[1] if sys.argv[1:] else FILE) as file:
        params = {name.removeprefix("params0/"): file[name] for name in file.files if name.startswith("params0/")}

    config = official_config(params, stoch=4)  # the sizes show in the shapes, but for the number of latents
    obs_space = {key: spaces.Box(-np.inf, np.inf, shape, np.float32)
                 for key, shape in (("pos", (3,)), ("height", ()), ("vel", (2,)))}  # fmt: skip
    agent = DreamerV3(obs_space, spaces.Box(-1, 1, (2,)), config)
    load_official(agent, params)
    print(f"loaded {sum(p.numel() for p in agent.parameters()):,} parameters")

    torch.manual_seed(0)
    obs = {key: np.zeros((1, *space.shape), np.float32) for key, space in obs_space.items()}
    action, _ = agent.act(obs | {"is_first": np.ones(1, bool)}, mode="eval")
    print("action:", action.numpy().round(3))


if __name__ == "__main__":
    main()
