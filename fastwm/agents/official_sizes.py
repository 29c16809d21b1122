"""The configuration and the spaces of an official DreamerV3 agent, as the shapes of its weights show them."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from fastwm.agents.dreamer_v3_config import DreamerV3Config
from fastwm.agents.official import OfficialError
from fastwm.nn.spaces import SpaceDict

Arrays = Mapping[str, np.ndarray]
STOCH = 32  # latent variables of every official size


def official_config(params: Arrays, stoch: int = STOCH) -> DreamerV3Config:
    """The configuration of the networks that have these weights; what no shape shows keeps its default.

    Args:
        params: official name -> array in the official layout.
        stoch: number of latent variables, of which the weights show only the product with the number of classes.

    Raises:
        OfficialError: for arrays that are no DreamerV3's, or latents that cannot be so many.
    """
    shape = {name: np.shape(array) for name, array in params.items()}
    try:
        deter, hidden = shape["dyn/dynin0/kernel"]
        latents, bins = shape["dyn/obslogit/bias"][0], shape["val/head/logits/bias"][0]
        blocks = shape["dyn/dyngru/kernel"][0]
        heads = {
            f"{ours}_layers": widths(shape, theirs)
            for ours, theirs in (("reward", "rew/mlp/linear"), ("cont", "con/mlp/linear"),
                                 ("actor", "pol/mlp/linear"), ("critic", "val/mlp/linear"))
        }  # fmt: skip
        prior_layers, post_layers = len(widths(shape, "dyn/prior")), len(widths(shape, "dyn/obs"))
    except (KeyError, ValueError, IndexError) as error:
        raise OfficialError(f"these are no weights of the official DreamerV3: {error} is missing") from None
    if stoch < 1 or latents % stoch:
        raise OfficialError(
            f"the latents have {latents} classes in all, which {stoch} variables cannot share evenly: "
            "give their number as stoch"
        )
    vectors = {"encoder_layers": widths(shape, "enc/mlp"), "decoder_layers": widths(shape, "dec/mlp/linear")}
    units = max(max(each) for each in heads.values())
    layers: dict[str, Any] = {
        name: len(each) if set(each) == {units} else each for name, each in (heads | vectors).items() if each
    }
    return DreamerV3Config(
        deter=deter, hidden=hidden, stoch=stoch, classes=latents // stoch, blocks=blocks, units=units, bins=bins,
        prior_layers=prior_layers, post_layers=post_layers, **layers, **image_sizes(shape),
    )  # fmt: skip


def widths(shape: Mapping[str, tuple[int, ...]], prefix: str) -> tuple[int, ...]:
    """The outputs of the layers `prefix0`, `prefix1`, ..."""
    found = {int(match[1]): shape[name][-1] for name in shape if (match := re.fullmatch(rf"{prefix}(\d+)/bias", name))}
    return tuple(found[i] for i in sorted(found))


def image_sizes(shape: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The settings of the image networks, where there are any."""
    channels = widths(shape, "enc/cnn")
    if not channels:
        return {}
    official = DreamerV3Config().mults
    depth = channels[0] // official[0]
    if channels != tuple(depth * mult for mult in official):
        depth = math.gcd(*channels)
    mults = tuple(each // depth for each in channels)
    return {"depth": depth, "mults": mults, "kernel": shape["enc/cnn0/kernel"][0]}


def official_spaces(params: Arrays) -> tuple[SpaceDict, SpaceDict]:
    """Observations and actions as the output layers name them.

    An image has no name there and is called `image`; it is taken to be square. A scalar looks like a vector of one
    entry, and several discrete values like one.
    """
    shape = {name: np.shape(array) for name, array in params.items()}
    obs: SpaceDict = {}
    act: SpaceDict = {}
    for name, dims in shape.items():
        if match := re.fullmatch(r"dec/vec/(.+)/(pred|logits)/bias", name):
            real = spaces.Box(-np.inf, np.inf, dims, np.float32)
            obs[match[1]] = real if match[2] == "pred" else spaces.Discrete(dims[0])
        elif match := re.fullmatch(r"pol/head/(.+)/(mean|logits)/bias", name):
            bounded = spaces.Box(-1, 1, dims, np.float32)
            act[match[1]] = bounded if match[2] == "mean" else spaces.Discrete(dims[0])
    if "dec/imgout/bias" in shape:
        stages, finest = len(widths(shape, "enc/cnn")), shape["dec/spnorm/scale"][0]
        side = math.isqrt(shape["dec/sp0/bias"][0] // finest) * 2**stages
        obs["image"] = spaces.Box(0, 255, (side, side, shape["dec/imgout/bias"][0]), np.uint8)
    return obs, act
