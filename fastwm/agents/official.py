"""Weights of the official DreamerV3 code, by name and layout, for `DreamerV3`."""

import re
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from fastwm.agents.dreamer_v3 import DreamerV3

PARTS = {"encoder": "enc", "rssm": "dyn", "decoder": "dec", "reward": "rew", "cont": "con", "actor": "pol",
         "critic": "val", "slow_critic": "slowval"}  # fmt: skip

# Ours -> theirs, after the part's name. {0} is the number in our name.
LAYERS = [
    (r"encoder\.mlp\.(\d+)", "enc/mlp{0}"),
    (r"encoder\.cnn\.(\d+)", "enc/cnn{0}"),
    (r"rssm\.core\.embed_carry", "dyn/dynin0"),
    (r"rssm\.core\.embed_inputs\.0", "dyn/dynin1"),
    (r"rssm\.core\.embed_inputs\.1", "dyn/dynin2"),
    (r"rssm\.core\.hidden\.0", "dyn/dynhid0"),
    (r"rssm\.core\.gates", "dyn/dyngru"),
    (r"rssm\.post\.0\.(\d+)", "dyn/obs{0}"),
    (r"rssm\.post\.1", "dyn/obslogit"),
    (r"rssm\.prior\.0\.(\d+)", "dyn/prior{0}"),
    (r"rssm\.prior\.1", "dyn/priorlogit"),
    (r"decoder\.from_deter", "dec/sp0"),
    (r"decoder\.stoch_hidden", "dec/sp1"),
    (r"decoder\.from_stoch", "dec/sp2"),
    (r"decoder\.norm", "dec/spnorm"),
    (r"decoder\.out", "dec/imgout"),
]


def official_name(agent: DreamerV3, name: str) -> str:
    """The official path, for example `dyn/dynin0/kernel`, of one of our parameters, `rssm.core.embed_carry...`."""
    module, leaf = name.rsplit(".", 1)
    norm = module.endswith("norm")
    module = module.removesuffix(".linear").removesuffix(".conv")
    leaf = "scale" if norm else {"weight": "kernel", "bias": "bias"}[leaf]
    part, rest = module.split(".", 1)
    # The encoder numbers its layers without a folder.
    if part != "encoder" and (match := re.fullmatch(r"mlp\.(\d+)(\.norm)?", rest)):
        return f"{PARTS[part]}/mlp/{'norm' if match[2] else 'linear'}{match[1]}/{leaf}"
    if part == "decoder" and (match := re.fullmatch(r"heads\.(\d+)", rest)):
        key = list(agent.decoder.vectors)[int(match[1])]
        return f"dec/vec/{key}/{'logits' if key in discrete_keys(agent) else 'pred'}/{leaf}"
    if part == "decoder" and (match := re.fullmatch(r"cnn\.(\d+)(\.norm)?", rest)):
        stage = len(agent.decoder.cnn) - 1 - int(match[1])
        return f"dec/conv{stage}{'norm' if match[2] else ''}/{leaf}"
    if match := re.fullmatch(r"heads\.(\d+)\.(mean|std|logits)", rest):
        layer = "stddev" if match[2] == "std" else match[2]
        return f"pol/head/{agent.actor.keys[int(match[1])]}/{layer}/{leaf}"
    if rest == "out" and part != "decoder":
        return f"{PARTS[part]}/head/{'logit' if part == 'cont' else 'logits'}/{leaf}"
    for pattern, template in LAYERS:
        if match := re.fullmatch(pattern + r"(\.norm)?", module):
            suffix = "norm" if match[match.re.groups] else ""
            return template.format(*match.groups()) + f"{suffix}/{leaf}"
    raise KeyError(f"no official name for {name!r}")


def discrete_keys(agent: DreamerV3) -> set[str]:
    return {key for key, leaf in agent.decoder.vectors.items() if key not in agent.encoder.continuous}


def official_names(agent: DreamerV3) -> dict[str, str]:
    """Official path -> our parameter name, for every parameter (the slow critic's included)."""
    return {official_name(agent, name): name for name, _ in agent.named_parameters()}


def from_official(array: np.ndarray) -> Tensor:
    """Official layout to ours: kernels (in, out) and (kh, kw, in, out); block kernels and vectors stay as they are."""
    tensor = torch.from_numpy(np.array(array, np.float32))
    if tensor.ndim == 2:
        return tensor.T.contiguous()
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor


@torch.no_grad()
def load_official(agent: DreamerV3, params: Mapping[str, np.ndarray]) -> None:
    """Copy the parameters of an official checkpoint (path -> array, as in its `agent` entry) into `agent`.

    Entries of other modules (optimiser, counters) are ignored; `slowval/` falls back to `val/` where it is missing.
    Raises ValueError when a parameter is missing or has another shape, naming both sides.
    """
    ours = dict(agent.named_parameters())
    for path, name in official_names(agent).items():
        source = path if path in params else path.replace("slowval/", "val/")
        if source not in params:
            raise ValueError(f"official checkpoint: {path!r} (our {name!r}) is missing")
        tensor = from_official(params[source])
        if tensor.shape != ours[name].shape:
            raise ValueError(
                f"official checkpoint: {path!r} has shape {tuple(tensor.shape)} in our layout, "
                f"but {name!r} needs {tuple(ours[name].shape)}; check the sizes in the config"
            )
        ours[name].copy_(tensor)
    for bound in ("lo", "hi"):
        if f"retnorm/{bound}/value" in params:
            getattr(agent.return_norm, bound).fill_(float(params[f"retnorm/{bound}/value"]))
