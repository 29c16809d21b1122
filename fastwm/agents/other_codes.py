"""Checkpoints of other PyTorch codes, put under the official names of DreamerV3 where their networks are the same."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from torch import Tensor

from fastwm.agents.official import OfficialError

Weights = Mapping[str, Tensor]

OLDER = "one dense GRU with LayerNorm, as DreamerV3 had it in 2023; ours is the block GRU of the 2025 paper"
UNLIKE = {
    r"_wm\.dynamics\..*": ("dreamerv3-torch", OLDER),
    r"rssm\.recurrent_model\..*": ("sheeprl", OLDER),
}
"""A name of a weight -> the code, and its recurrent network."""


def official_arrays(saved: Any, vectors: Sequence[tuple[str, int]] = ()) -> dict[str, np.ndarray]:
    """The weights in a checkpoint of another code, by the official names and in the official layout.

    Args:
        saved: what `torch.load` found in the file.
        vectors: name and width of each vector observation, in the order in which that code joined them; none for a
            checkpoint with one vector, which is called `obs`.

    Raises:
        OfficialError: for a code whose networks are not ours, or a file that is none of them.
    """
    weights = next((saved[key] for key in ("agent_state_dict", "world_model") if isinstance(saved, Mapping)
                    and isinstance(saved.get(key), Mapping)), saved)  # fmt: skip
    if not isinstance(weights, Mapping) or not all(isinstance(name, str) for name in weights):
        raise OfficialError("the file holds no weights by name")
    names = [name.replace("_orig_mod.", "") for name in weights]
    for pattern, (code, network) in UNLIKE.items():
        if any(re.fullmatch(pattern, name) for name in names):
            raise OfficialError(f"weights of {code}, whose recurrent network is {network}: its weights fit nowhere")
    if "rssm._deter_net._dyn_gru.weight" not in names:
        raise OfficialError("the weights are of no code that is known here: the official DreamerV3, or r2dreamer")
    return r2dreamer(dict(zip(names, weights.values())), vectors)


# r2dreamer: DreamerV3's networks under other names. Its features are [stoch, deter], its tokens those of the image,
# channels first, then those of the vectors; ours are [deter, stoch], and the vectors' first, channels last.

R2_LAYERS = {
    r"rssm\._deter_net\._dyn_in(\d)\.0": "dyn/dynin{0}",
    r"rssm\._deter_net\._dyn_in(\d)\.1": "dyn/dynin{0}norm",
    r"rssm\._deter_net\._dyn_hid\.dyn_hid_(\d+)": "dyn/dynhid{0}",
    r"rssm\._deter_net\._dyn_hid\.norm_(\d+)": "dyn/dynhid{0}norm",
    r"rssm\._deter_net\._dyn_gru": "dyn/dyngru",
    r"rssm\._obs_net\.obs_net_(\d+)": "dyn/obs{0}",
    r"rssm\._obs_net\.obs_net_n_(\d+)": "dyn/obs{0}norm",
    r"rssm\._obs_net\.obs_net_logit": "dyn/obslogit",
    r"rssm\._img_net\.img_net_(\d+)": "dyn/prior{0}",
    r"rssm\._img_net\.img_net_n_(\d+)": "dyn/prior{0}norm",
    r"rssm\._img_net\.img_net_logit": "dyn/priorlogit",
    r"encoder\.encoders\.\d\.layers\.mlp_encoder_linear(\d+)": "enc/mlp{0}",
    r"encoder\.encoders\.\d\.layers\.mlp_encoder_norm(\d+)": "enc/mlp{0}norm",
    r"decoder\._mlp\.mlp\.layers\.mlp_decoder_(linear|norm)(\d+)": "dec/mlp/{0}{1}",
    r"decoder\._cnn\.sp(\d)(?:\.0)?": "dec/sp{0}",
    r"decoder\._cnn\.sp1\.1": "dec/sp1norm",
    r"decoder\._cnn\.sp_norm\.0": "dec/spnorm",
    r"reward\.mlp\.layers\.reward_(linear|norm)(\d+)": "rew/mlp/{0}{1}",
    r"reward\.last": "rew/head/logits",
    r"cont\.mlp\.layers\.cont_(linear|norm)(\d+)": "con/mlp/{0}{1}",
    r"cont\.last": "con/head/logit",
    r"actor\.mlp\.layers\.actor_(linear|norm)(\d+)": "pol/mlp/{0}{1}",
    r"value\.mlp\.layers\.value_(linear|norm)(\d+)": "val/mlp/{0}{1}",
    r"value\.last": "val/head/logits",
    r"_slow_value\.mlp\.layers\.value_(linear|norm)(\d+)": "slowval/mlp/{0}{1}",
    r"_slow_value\.last": "slowval/head/logits",
}
HEADS = ("rew", "con", "pol", "val", "slowval")


def r2dreamer(weights: Weights, vectors: Sequence[tuple[str, int]]) -> dict[str, np.ndarray]:
    if not any(name.startswith("decoder.") for name in weights):
        raise OfficialError("the checkpoint of r2dreamer has no decoder: only its rep_loss=dreamer is DreamerV3")
    arrays: dict[str, np.ndarray] = {}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        if layer := r2_layer(module, weights):
            array = value.detach().float().numpy()
            leaf = "bias" if leaf == "bias" else "scale" if layer.endswith("norm") or "/norm" in layer else "kernel"
            arrays[f"{layer}/{leaf}"] = official_layout(array, blocks=array.ndim == 3)
    latents, deter = arrays["dyn/dynin1/kernel"].shape[0], arrays["dyn/dynin0/kernel"].shape[0]
    for head in HEADS:
        kernel = arrays[f"{head}/mlp/linear0/kernel"]
        arrays[f"{head}/mlp/linear0/kernel"] = np.concatenate([kernel[latents:], kernel[:latents]])
    kernel = arrays["dyn/obs0/kernel"]
    arrays["dyn/obs0/kernel"] = np.concatenate([kernel[:deter], tokens_in_order(kernel[deter:], arrays)])
    split_actor(arrays, weights)
    split_vectors(arrays, weights, vectors)
    low_high = weights["return_ema.ema_vals"].float().numpy()
    return arrays | {"retnorm/lo/value": low_high[0], "retnorm/hi/value": low_high[1]}


def r2_layer(module: str, weights: Weights) -> str | None:
    """The official name of a layer; None where it is shared out by name later, or of no network of ours."""
    if match := re.fullmatch(r"encoder\.encoders\.0\.layers\.(\d+)", module):
        stage, part = divmod(int(match[1]), 4)  # convolution, pooling, norm, activation
        return f"enc/cnn{stage}" + ("norm" if part == 2 else "")
    if match := re.fullmatch(r"decoder\._cnn\.layers\.(\d+)", module):
        stages = sum(bool(re.fullmatch(r"decoder\._cnn\.layers\.\d+\.bias", name)) for name in weights) - 1
        stage, part = divmod(int(match[1]), 4)  # upsampling, convolution, norm, activation
        return "dec/imgout" if stage == stages else f"dec/conv{stages - 1 - stage}" + ("norm" if part == 2 else "")
    for pattern, template in R2_LAYERS.items():
        if match := re.fullmatch(pattern, module):
            return template.format(*match.groups())
    return None


def official_layout(array: np.ndarray, blocks: bool) -> np.ndarray:
    """Kernels (in, out), (h, w, in, out) and (blocks, in, out), from PyTorch's and r2dreamer's (out, in, blocks)."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.transpose(2, 1, 0) if blocks else array.T


def tokens_in_order(kernel: np.ndarray, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of a kernel that reads the image's tokens (C, H, W) and the vectors', in our order."""
    if "enc/cnn0/bias" not in arrays:
        return kernel
    stages = sum(bool(re.fullmatch(r"enc/cnn\d+/bias", name)) for name in arrays)
    channels = len(arrays[f"enc/cnn{stages - 1}/bias"])
    vector = len(arrays["enc/mlp0/bias"]) if "enc/mlp0/bias" in arrays else 0
    image = kernel[: len(kernel) - vector].reshape(channels, -1, kernel.shape[-1])
    return np.concatenate([kernel[len(kernel) - vector :], image.transpose(1, 0, 2).reshape(-1, kernel.shape[-1])])


def split_actor(arrays: dict[str, np.ndarray], weights: Weights) -> None:
    """One output layer: logits, or means and then deviations."""
    outputs = {leaf: official_layout(weights[f"actor.last.{ours}"].float().numpy(), False)
               for leaf, ours in (("kernel", "weight"), ("bias", "bias"))}  # fmt: skip
    actions = arrays["dyn/dynin2/kernel"].shape[0]
    for leaf, value in outputs.items():
        if value.shape[-1] == actions:
            arrays[f"pol/head/action/logits/{leaf}"] = value
        else:
            mean, std = np.split(value, 2, -1)
            arrays |= {f"pol/head/action/mean/{leaf}": mean, f"pol/head/action/stddev/{leaf}": std}


def split_vectors(arrays: dict[str, np.ndarray], weights: Weights, vectors: Sequence[tuple[str, int]]) -> None:
    """Inputs and outputs of the vectors, in the order of their names."""
    if "enc/mlp0/kernel" not in arrays:
        return
    kernel = arrays["enc/mlp0/kernel"]
    vectors = vectors or [("obs", len(kernel))]
    if sum(width for _, width in vectors) != len(kernel):
        given = ", ".join(f"{name} {width}" for name, width in vectors)
        raise OfficialError(f"the encoder reads {len(kernel)} numbers, the vectors given have {given}")
    ends = list(accumulate((width for _, width in vectors), initial=0))
    parts = {name: slice(*pair) for (name, _), pair in zip(vectors, pairwise(ends))}
    arrays["enc/mlp0/kernel"] = np.concatenate([kernel[parts[name]] for name in sorted(parts)])
    for leaf, ours in (("kernel", "weight"), ("bias", "bias")):
        value = official_layout(weights[f"decoder._mlp.last.{ours}"].float().numpy(), False)
        arrays |= {f"dec/vec/{name}/pred/{leaf}": value[..., part] for name, part in parts.items()}
