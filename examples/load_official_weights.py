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

from fastwm.agents import DreamerV3, DreamerV3Config, load_official

FILE = Path(__file__).parent.parent / "tests/golden/dreamerv3_vector_continuous.npz"


def main() -> None:
    with np.load(sys.argv[1] if sys.argv[1:] else FILE) as file:
        params = {name.removeprefix("params0/"): file[name] for name in file.files if name.startswith("params0/")}

    # Sizes show in the shapes: official kernels are [in, out], those in blocks [blocks, in, out].
    deter, hidden = params["dyn/dynin0/kernel"].shape
    stoch = 4  # latents are stored flat, so this number must be known
    config = DreamerV3Config(
        deter=deter, hidden=hidden, stoch=stoch, classes=params["dyn/obslogit/bias"].size // stoch,
        blocks=len(params["dyn/dyngru/kernel"]), units=params["enc/mlp0/bias"].size,
        encoder_layers=sum(name.startswith("enc/mlp") and name.endswith("kernel") for name in params),
        decoder_layers=sum(name.startswith("dec/mlp/linear") and name.endswith("kernel") for name in params),
        reward_layers=sum(name.startswith("rew/mlp/linear") and name.endswith("kernel") for name in params),
        cont_layers=sum(name.startswith("con/mlp/linear") and name.endswith("kernel") for name in params),
        actor_layers=sum(name.startswith("pol/mlp/linear") and name.endswith("kernel") for name in params),
        critic_layers=sum(name.startswith("val/mlp/linear") and name.endswith("kernel") for name in params),
        prior_layers=sum(name.startswith("dyn/prior") and name.endswith("kernel") for name in params) - 1,
        bins=params["val/head/logits/bias"].size, precision="fp32",
    )  # fmt: skip
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
