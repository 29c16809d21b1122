"""Weights of the official codes, by name and layout, for every agent.

DreamerV3's names are those of its checkpoints. Dreamer V1 and DreamerV2 save a list without names: here they are the
paths of what the code gets by name, for example `rssm/img_in/kernel`, as a walk over every module's `_modules` finds
them. The names of PlaNet and World Models are TensorFlow's.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastwm.agents.agent import Agent
from fastwm.agents.dreamer_v1 import DreamerV1
from fastwm.agents.dreamer_v2 import DreamerV2
from fastwm.agents.dreamer_v3 import DreamerV3
from fastwm.agents.planet import PlaNet
from fastwm.agents.world_models import WorldModels
from fastwm.errors import FastwmError
from fastwm.nn.cell_weights import gru_from_keras, lstm_from_tensorflow
from fastwm.nn.spaces import classes

Arrays = Mapping[str, np.ndarray]
SHOWN = 8  # misfits in one error


class OfficialError(FastwmError, ValueError):
    """Official weights that do not fit the agent."""


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def from_official(array: np.ndarray) -> Tensor:
    """Official layout to ours: kernels (in, out) and (h, w, in, out); block kernels and vectors stay as they are."""
    ours = tensor(array)
    if ours.ndim == 2:
        return ours.T.contiguous()
    return ours.permute(3, 2, 0, 1).contiguous() if ours.ndim == 4 else ours


def stacked(*arrays: np.ndarray) -> Tensor:
    """Layers below each other as one."""
    return torch.cat([from_official(array) for array in arrays])


@dataclass(frozen=True)
class Source:
    """The official arrays that one of our parameters is made of, and how."""

    names: tuple[str, ...]
    convert: Callable[..., Tensor] = stacked

    def __call__(self, arrays: Arrays) -> Tensor:
        return self.convert(*(arrays[name] for name in self.names))


@dataclass(frozen=True)
class Origin:
    """How an official code names its parameters."""

    source: Callable[[Any, str], Source]
    """(agent, name of a parameter) -> its source."""
    groups: tuple[str, ...]
    """Patterns of the first part of the names of its networks; other names are optimisers and counters."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Groups that may be missing, as copies of others."""


def sources(agent: Agent) -> dict[str, Source]:
    """The source of every parameter of the agent, by our name.

    Raises:
        FastwmError: for a parameter that the official agent does not have.
    """
    origin = origin_of(agent)
    return {name: origin.source(agent, name) for name, _ in agent.named_parameters()}


def origin_of(agent: Agent) -> Origin:
    for kind, origin in ORIGINS.items():
        if isinstance(agent, kind):
            return origin
    raise FastwmError(
        f"there is no official code of {type(agent).__name__}; there is: {', '.join(k.__name__ for k in ORIGINS)}"
    )


@torch.no_grad()
def load_official(agent: Agent, params: "Arrays | str | Path") -> None:
    """Copy the weights of an official agent into `agent`, whose configuration must have the same sizes.

    Args:
        params: official name -> array in the official layout, or the path of an `.npz` file of them. `:0` after a name
            and names of no network (optimisers, counters) are ignored. A slow critic that is missing is the critic.
            V, M and C of World Models may come alone.

    Raises:
        ValueError: an `OfficialError` that names the arrays that are missing, of another shape, and left over. Nothing
            is changed then.
    """
    if isinstance(params, (str, Path)):
        with np.load(params) as file:
            params = dict(file)
    origin, ours, wanted = origin_of(agent), dict(agent.named_parameters()), sources(agent)
    arrays = {name.removesuffix(":0"): array for name, array in params.items()}
    for copy, original in origin.copies.items():
        if not any(name.startswith(copy) for name in arrays):
            arrays |= {copy + name.removeprefix(original): x for name, x in arrays.items() if name.startswith(original)}
    if isinstance(agent, WorldModels):
        given = {name.split(".")[0] for name, source in wanted.items() if arrays.keys() & source.names}
        wanted = {name: source for name, source in wanted.items() if name.split(".")[0] in given or not given}
    tensors: dict[str, Tensor] = {}
    misfits = []
    for name, source in wanted.items():
        wrong = [f"{each} is missing" for each in source.names if each not in arrays]
        if not wrong:
            try:
                tensors[name] = source(arrays)
                fits = tensors[name].shape == ours[name].shape
            except (IndexError, RuntimeError, TypeError, ValueError):
                fits = False
            wrong = [f"{each} {list(np.shape(arrays[each]))} has another shape" for each in source.names if not fits]
        misfits += [f"{problem} (our {name} is {list(ours[name].shape)})" for problem in wrong]
    used = {each for source in wanted.values() for each in source.names}
    networks, leaves = re.compile("|".join(origin.groups)), {name.rsplit("/", 1)[1] for name in used}
    for name in sorted(arrays.keys() - used):  # a slot of TensorFlow's Adam has another leaf
        if networks.fullmatch(name.split("/")[0]) and name.rsplit("/", 1)[-1] in leaves:
            misfits.append(f"{name} is left over")
    if misfits:
        shown = "; ".join(misfits[:SHOWN]) + (f"; and {len(misfits) - SHOWN} more" if misfits[SHOWN:] else "")
        raise OfficialError(f"official weights of {type(agent).__name__}: {shown}. Check the sizes in the config")
    for name, tensor in tensors.items():
        ours[name].copy_(tensor)
    for bound in ("lo", "hi"):
        if isinstance(agent, DreamerV3) and (key := f"retnorm/{bound}/value") in arrays:
            getattr(agent.return_norm, bound).fill_(float(arrays[key]))


def translated(name: str, table: Mapping[str, str]) -> str | None:
    """The official name of a layer by the first pattern that fits the whole of ours; its groups fill the template."""
    for pattern, template in table.items():
        if match := re.fullmatch(pattern, name):
            return template.format(*match.groups())
    return None


def unknown(agent: Agent, name: str) -> FastwmError:
    return FastwmError(f"the official {type(agent).__name__} has nothing like our {name}")


# DreamerV3

V3_PARTS = {"encoder": "enc", "rssm": "dyn", "decoder": "dec", "reward": "rew", "cont": "con", "actor": "pol",
            "critic": "val", "slow_critic": "slowval"}  # fmt: skip
V3_LAYERS = {
    r"encoder\.mlp\.(\d+)": "enc/mlp{0}",
    r"encoder\.cnn\.(\d+)": "enc/cnn{0}",
    r"rssm\.core\.embed_carry": "dyn/dynin0",
    r"rssm\.core\.embed_inputs\.0": "dyn/dynin1",
    r"rssm\.core\.embed_inputs\.1": "dyn/dynin2",
    r"rssm\.core\.hidden\.0": "dyn/dynhid0",
    r"rssm\.core\.gates": "dyn/dyngru",
    r"rssm\.post\.0\.(\d+)": "dyn/obs{0}",
    r"rssm\.post\.1": "dyn/obslogit",
    r"rssm\.prior\.0\.(\d+)": "dyn/prior{0}",
    r"rssm\.prior\.1": "dyn/priorlogit",
    r"decoder\.from_deter": "dec/sp0",
    r"decoder\.stoch_hidden": "dec/sp1",
    r"decoder\.from_stoch": "dec/sp2",
    r"decoder\.norm": "dec/spnorm",
    r"decoder\.out": "dec/imgout",
}


def dreamer_v3(agent: DreamerV3, name: str) -> Source:
    module, leaf = name.rsplit(".", 1)
    norm = module.endswith("norm")
    leaf = "scale" if norm else {"weight": "kernel", "bias": "bias"}[leaf]
    module = module.removesuffix(".linear").removesuffix(".conv")
    bare, suffix = module.removesuffix(".norm"), "norm" if module.endswith(".norm") and module != "decoder.norm" else ""
    part, rest = module.split(".", 1)
    if part != "encoder" and (match := re.fullmatch(r"mlp\.(\d+)(\.norm)?", rest)):
        path = f"{V3_PARTS[part]}/mlp/{'norm' if match[2] else 'linear'}{match[1]}"
    elif part == "decoder" and (match := re.fullmatch(r"heads\.(\d+)", rest)):
        key, space = list(agent.decoder.vectors.items())[int(match[1])]
        path = f"dec/vec/{key}/{'logits' if classes(space) else 'pred'}"
    elif part == "decoder" and (match := re.fullmatch(r"cnn\.(\d+)(\.norm)?", rest)):
        path = f"dec/conv{len(agent.decoder.cnn) - 1 - int(match[1])}{'norm' if match[2] else ''}"
    elif match := re.fullmatch(r"heads\.(\d+)\.(mean|std|logits)", rest):
        path = f"pol/head/{agent.actor.keys[int(match[1])]}/{'stddev' if match[2] == 'std' else match[2]}"
    elif rest == "out" and part != "decoder":
        path = f"{V3_PARTS[part]}/head/{'logit' if part == 'cont' else 'logits'}"
    elif (layer := translated(bare if suffix else module, V3_LAYERS)) is not None:
        path = layer + suffix
    else:
        raise unknown(agent, name)
    return Source((f"{path}/{leaf}",))


def official_names(agent: Agent) -> dict[str, str]:
    """Official name -> our parameter's name, of an agent whose every parameter is one official array."""
    return {source.names[0]: name for name, source in sources(agent).items()}


# DreamerV2

V2_LAYERS = {
    r"world\.(encoder|decoder)\.cnn\.(\d)\.conv": "{0}/conv{1}",
    r"world\.(encoder|decoder)\.cnn\.(\d)\.norm": "{0}/convnorm{1}",
    r"world\.(encoder|decoder)\.mlp\.(\d+)\.linear": "{0}/dense{1}",
    r"world\.(encoder|decoder)\.mlp\.(\d+)\.norm": "{0}/densenorm{1}",
    r"world\.decoder\.conv_in": "decoder/convin",
    r"world\.decoder\.conv_out": "decoder/conv3",
    r"world\.rssm\.input\.linear": "rssm/img_in",
    r"world\.rssm\.input\.norm": "rssm/img_in_norm",
    r"world\.rssm\.cell\.linear": "rssm/cell/layer",
    r"world\.rssm\.cell\.layer_norm": "rssm/cell/norm",
    r"world\.rssm\.prior\.linear": "rssm/img_out_0",
    r"world\.rssm\.prior\.norm": "rssm/img_out_norm_0",
    r"world\.rssm\.prior_stats": "rssm/img_dist_0",
    r"world\.rssm\.post\.linear": "rssm/obs_out",
    r"world\.rssm\.post\.norm": "rssm/obs_out_norm",
    r"world\.rssm\.post_stats": "rssm/obs_dist",
    r"world\.(reward)\.mlp\.(\d+)\.linear": "{0}/dense{1}",
    r"world\.(reward)\.mlp\.(\d+)\.norm": "{0}/norm{1}",
    r"world\.(reward)\.out": "{0}/out/out",
    r"world\.cont\.mlp\.(\d+)\.linear": "discount/dense{0}",
    r"world\.cont\.mlp\.(\d+)\.norm": "discount/norm{0}",
    r"world\.cont\.out": "discount/out/out",
    r"slow_critic\.mlp\.(\d+)\.linear": "target_critic/dense{0}",
    r"slow_critic\.mlp\.(\d+)\.norm": "target_critic/norm{0}",
    r"slow_critic\.out": "target_critic/out/out",
    r"(actor|critic)\.mlp\.(\d+)\.linear": "{0}/dense{1}",
    r"(actor|critic)\.mlp\.(\d+)\.norm": "{0}/norm{1}",
    r"(actor|critic)\.out": "{0}/out/out",
}


def dreamer_v2(agent: DreamerV2, name: str) -> Source:
    module, leaf = name.rsplit(".", 1)
    names = {"weight": "gamma", "bias": "beta"} if module.endswith("norm") else {"weight": "kernel", "bias": "bias"}
    if match := re.fullmatch(r"world\.decoder\.heads\.(\d+)", module):
        layer: str | None = f"decoder/dense_{list(agent.world.decoder.vectors)[int(match[1])]}/out"
    else:
        layer = translated(module, V2_LAYERS)
    if layer is None:
        raise unknown(agent, name)
    layers = [layer]
    if module == "actor.out":
        (space, *others) = agent.act_space.values()
        if others:
            raise FastwmError("the official DreamerV2 has one action")
        layers += [] if classes(space) else ["actor/out/std"]
    return Source(tuple(f"{each}/{names[leaf]}" for each in layers))


# Dreamer V1

V1_LAYERS = {
    r"world\.decoder\.conv_in": "decode/h1",
    r"world\.decoder\.conv_out": "decode/h5",
    r"world\.rssm\.input\.linear": "dynamics/img1",
    r"world\.rssm\.prior\.linear": "dynamics/img2",
    r"world\.rssm\.prior_stats": "dynamics/img3",
    r"world\.rssm\.post\.linear": "dynamics/obs1",
    r"world\.rssm\.post_stats": "dynamics/obs2",
    r"world\.(reward)\.mlp\.(\d+)\.linear": "{0}/h{1}",
    r"world\.(reward)\.out": "{0}/hout",
    r"world\.cont\.mlp\.(\d+)\.linear": "pcont/h{0}",
    r"world\.cont\.out": "pcont/hout",
    r"critic\.mlp\.(\d+)\.linear": "value/h{0}",
    r"critic\.out": "value/hout",
    r"actor\.mlp\.(\d+)\.linear": "actor/h{0}",
    r"actor\.out": "actor/hout",
}


def dreamer_v1(agent: DreamerV1, name: str) -> Source:
    module, leaf = name.rsplit(".", 1)
    if module == "world.rssm.cell":
        arrays = tuple(f"dynamics/cell/{each}" for each in ("kernel", "recurrent_kernel", "bias"))
        return Source(arrays, lambda *cell: gru_from_keras(*map(tensor, cell))[leaf])
    if match := re.fullmatch(r"world\.(encoder|decoder)\.cnn\.(\d)\.conv", module):
        encoder = match[1] == "encoder"
        layer: str | None = f"{'encode' if encoder else 'decode'}/h{int(match[2]) + (1 if encoder else 2)}"
    else:
        layer = translated(module, V1_LAYERS)
    if layer is None:
        raise unknown(agent, name)
    return Source((f"{layer}/{leaf.replace('weight', 'kernel')}",))


# PlaNet. TensorFlow numbers the layers of a scope: dense, dense_1, dense_2.

TRANSITION, POSTERIOR = "rnn/rssm/transition", "rnn/rssm/posterior"
PLANET_LAYERS = {
    "input.linear": (f"{TRANSITION}/dense",),
    "prior.linear": (f"{TRANSITION}/dense_1",),
    "prior_stats": (f"{TRANSITION}/dense_2", f"{TRANSITION}/dense_3"),
    "post.linear": (f"{POSTERIOR}/dense",),
    "post_stats": (f"{POSTERIOR}/dense_1", f"{POSTERIOR}/dense_2"),
}


def planet(agent: PlaNet, name: str) -> Source:
    module, leaf = name.removeprefix("world.").removeprefix("rssm.").rsplit(".", 1)
    if module == "cell":
        return Source((f"{TRANSITION}/gru_cell/{leaf.replace('weight', 'w').replace('bias', 'b')}",))
    leaf = leaf.replace("weight", "kernel")
    if module in PLANET_LAYERS:
        return Source(tuple(f"{layer}/{leaf}" for layer in PLANET_LAYERS[module]))

    def numbered(layer: str, number: int) -> Source:
        return Source((f"{layer}{f'_{number}' if number else ''}/{leaf}",))

    decoder = agent.world.decoder
    if match := re.fullmatch(r"encoder\.cnn\.(\d)\.conv", module):
        return numbered("encoder/conv2d", int(match[1]))
    if len(decoder.images) == 1:  # a head of its own for every observation
        image = f"head_{next(iter(decoder.images))}"
        if module == "decoder.conv_in":
            return numbered(f"{image}/dense", 0)
        if match := re.fullmatch(r"decoder\.cnn\.(\d)\.conv", module):
            return numbered(f"{image}/conv2d_transpose", int(match[1]))
        if module == "decoder.conv_out":
            return numbered(f"{image}/conv2d_transpose", len(decoder.cnn))
    for part, key, mlp in (
        ("reward", "reward", agent.world.reward.mlp),
        *(("decoder", key, decoder.mlp) for key in decoder.vectors if len(decoder.vectors) == 1),
    ):
        if match := re.fullmatch(rf"{part}\.mlp\.(\d+)\.linear", module):
            return numbered(f"head_{key}/dense", int(match[1]))
        if module in (f"{part}.out", f"{part}.heads.0"):
            return numbered(f"head_{key}/dense", len(mlp))
    raise unknown(agent, name)


# World Models

LSTM = "RNN/layer_norm_basic_lstm_cell"
VAE_LAYERS = {"mu": "enc_fc_mu", "logvar": "enc_fc_log_var", "expand": "dec_fc"}


def world_models(agent: WorldModels, name: str) -> Source:
    part, rest = name.split(".", 1)
    module, leaf = rest.rsplit(".", 1)
    kernel = leaf.replace("weight", "kernel")
    if match := re.fullmatch(r"(enc|dec)oder\.(\d)", module):
        return Source((f"{match[1]}_{'conv' if match[1] == 'enc' else 'deconv'}{int(match[2]) + 1}/{kernel}",))
    if part == "vae":
        return Source((f"{VAE_LAYERS[module]}/{kernel}",))
    if agent.rnn.head.joint:
        raise unknown(agent, "joint mixture")
    if module == "head.linear":
        return Source((f"RNN/output_{leaf[0]}",))
    if name == "rnn.lstm.bias_hh_l0":  # the original has one bias
        return Source((), lambda: torch.zeros(4 * agent.rnn.hidden))
    if part == "rnn":

        def of_lstm(kernel: np.ndarray, bias: np.ndarray) -> Tensor:
            ours = lstm_from_tensorflow(tensor(kernel), tensor(bias), agent.rnn.lstm.input_size)
            return ours[leaf.removesuffix("_l0")]

        return Source((f"{LSTM}/kernel", f"{LSTM}/bias"), of_lstm)
    layers = ["_hidden", "_output"] if len(agent.controller.layers) > 1 else [""]
    return Source((f"controller/{leaf}{layers[int(module.split('.')[1])]}",))


ORIGINS: dict[type[Agent], Origin] = {
    DreamerV3: Origin(dreamer_v3, ("enc", "dyn", "dec", "rew", "con", "pol", "val", "slowval"), {"slowval/": "val/"}),
    DreamerV2: Origin(
        dreamer_v2, ("encoder", "rssm", "decoder", "reward", "discount", "actor", "critic", "target_critic"),
        {"target_critic/": "critic/"},
    ),
    DreamerV1: Origin(dreamer_v1, ("encode", "dynamics", "decode", "reward", "pcont", "actor", "value")),
    PlaNet: Origin(planet, ("encoder", "rnn", "head_.*")),
    WorldModels: Origin(world_models, ("enc_.*", "dec_.*", "RNN", "controller")),
}  # fmt: skip
