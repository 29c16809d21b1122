"""Published weights of World Models (hardmaru/WorldModelsExperiments), as those of our modules.

Their files are JSON lists of arrays of integers: the values times 10,000. Convolutions are (height, width, in, out),
dense layers (in, out), and the LSTM is TensorFlow's: gates i, j, f, o, with 1 added to the forget gate as it runs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastwm.agents.world_models.controller import Controller
from fastwm.errors import FastwmError
from fastwm.nn.cell_weights import lstm_from_tensorflow
from fastwm.nn.conv_vae import ConvVAE
from fastwm.nn.mdn_rnn import MDNRNN

SCALE = 10_000


def read_json(path: str | Path) -> list[np.ndarray]:
    """The arrays of a published file, in their order and true size."""
    try:
        values = json.loads(Path(path).read_text())
        return [np.asarray(value, np.float64) / SCALE for value in values]
    except (OSError, ValueError, TypeError) as error:
        raise FastwmError(f"{path} is not a list of arrays, as the published weights are: {error}") from error


def from_tensorflow(array: np.ndarray) -> Tensor:
    """A kernel or bias in our layout: both kinds of convolution kernels and dense ones have their axes turned."""
    tensor = torch.from_numpy(np.array(array, np.float32))
    return tensor.permute(3, 2, 0, 1) if tensor.dim() == 4 else tensor.mT if tensor.dim() == 2 else tensor


def vae_layers(vae: ConvVAE) -> list[Any]:
    """The layers with weights, in the order of the published file."""
    return [*vae.encoder, vae.mu, vae.logvar, vae.expand, *vae.decoder]


@torch.no_grad()
def load_vae(vae: ConvVAE, arrays: Sequence[np.ndarray]) -> None:
    """Kernel and bias of every layer: encoder, mu, logvar, the decoder's dense layer, decoder.

    The published V saw frames changed in an odd way (see the paper's code): it does not fit plain ones.
    """
    params = [p for layer in vae_layers(vae) for p in (layer.weight, layer.bias)]
    _copy("V", params, [from_tensorflow(array) for array in arrays])


@torch.no_grad()
def load_rnn(rnn: MDNRNN, arrays: Sequence[np.ndarray]) -> None:
    """`rnn.json`: the head's kernel and bias, the LSTM's kernel and bias."""
    if len(arrays) != 4 or np.ndim(arrays[2]) != 2:
        raise FastwmError(f"M: expected four arrays (head, LSTM), got {len(arrays)}")
    out_w, out_b, kernel, bias = arrays
    lstm = lstm_from_tensorflow(
        torch.from_numpy(np.array(kernel, np.float32)), torch.from_numpy(np.array(bias, np.float32)),
        rnn.lstm.input_size,
    )  # fmt: skip
    ours = [rnn.lstm.get_parameter(f"{name}_l0") for name in lstm] + [rnn.head.linear.weight, rnn.head.linear.bias]
    _copy("M", ours, [*lstm.values(), from_tensorflow(out_w), from_tensorflow(out_b)])


@torch.no_grad()
def load_controller(controller: Controller, weight: np.ndarray, bias: np.ndarray | None = None) -> None:
    """A linear controller: `weight` (features, actions) and its bias, where it has one."""
    (linear,) = controller.linears()
    ours = [linear.weight] + ([linear.bias] if bias is not None else [])
    _copy("C", ours, [from_tensorflow(np.asarray(a)) for a in ([weight] if bias is None else [weight, bias])])


def _copy(name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    if len(ours) != len(theirs):
        raise FastwmError(f"{name}: expected {len(ours)} arrays, got {len(theirs)}")
    for i, (p, value) in enumerate(zip(ours, theirs)):
        if p.shape != value.shape:
            raise FastwmError(
                f"{name}: array {i} is {list(value.shape)} in our layout, expected {list(p.shape)}; check the sizes"
            )
        p.copy_(value)
