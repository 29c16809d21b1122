"""A layer that someone puts in place of another is called, or refused by name; it is never left out. And precision."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.testing import assert_close

from fastwm.agents.world_models.controller import Controller
from fastwm.nn import (
    DREAMER_V2,
    GRU,
    LSTM,
    MDNRNN,
    MLP,
    PLANET,
    RSSM,
    Actor,
    BernoulliHead,
    LayerNormGRU,
    NormalHead,
    StridedDecoder,
)
from fastwm.nn.layers import Dense, Linear, RMSNorm
from fastwm.ops import LinearWeights

T, B = 5, 3
VARIANTS = ["planet", "dreamer_v1", "dreamer_v2", "dreamer_v3_2023", "dreamer_v3"]
REPLACED = "but a fused operator reads the parameters of fastwm's"


class Twice(nn.Module):
    """A layer of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class DoubledDense(Dense):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Adapted(Linear):
    """As low-rank adapters do it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def put(mlp: nn.Sequential, what: str) -> None:
    torch.manual_seed(1)
    if what == "layer":
        mlp[1] = Twice()
    elif what == "subclass":
        mlp[1] = DoubledDense(8, 8)
    elif what == "linear":
        mlp[1].linear = Adapted(8, 8)
    elif what == "norm":
        mlp[1].norm = Twice()
    else:
        mlp.append(nn.Tanh())


def one_by_one(mlp: nn.Sequential, x: Tensor) -> Tensor:
    for layer in mlp:
        x = layer(x)
    return x


@pytest.mark.parametrize("what", ["layer", "subclass", "linear", "norm", "one more"])
def test_an_mlp_calls_what_is_put_into_it(what: str) -> None:
    torch.manual_seed(0)
    mlp, x = MLP(6, 8, 3), torch.randn(B, 6)
    put(mlp, what)
    assert_close(mlp(x), one_by_one(mlp, x))
    with pytest.raises(TypeError, match=REPLACED):
        _ = mlp.params
    head, onehot = BernoulliHead(8, 8, 3), torch.eye(B, 2)
    put(head.mlp, what)
    assert_close(head(x, onehot).logit, head.out(one_by_one(head.mlp, torch.cat([x, onehot], -1)))[..., 0])


@pytest.mark.parametrize("what", ["layer", "linear", "activation", "eps"])
@pytest.mark.parametrize("norm", [False, True])
def test_keras_networks_call_what_is_put_into_them(what: str, norm: bool) -> None:
    torch.manual_seed(0)
    head, x, onehot = NormalHead(8, 8, 3, DREAMER_V2.normed(norm)), torch.randn(B, 6), torch.eye(B, 2)
    mlp: Any = head.mlp
    if what == "layer":
        mlp[1] = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    elif what == "linear":
        mlp[1].linear = Adapted(8, 8)
    elif what == "activation":
        mlp[1] = MLP(8, 8, 1, PLANET.normed(norm))[0]
    elif norm:
        mlp[1].norm.eps = 0.5
    assert_close(head(x, onehot).mean, head.out(one_by_one(mlp, torch.cat([onehot, x], -1)))[..., 0])


def make_rssm(variant: str) -> Any:
    torch.manual_seed(0)
    return RSSM(variant, 7, 2, 16, 8, 4, **({"classes": 4, "blocks": 2} if variant == "dreamer_v3" else {}))


def observe(rssm: Any, batch: int = B, swap: bool = False, **changed: Tensor) -> Any:
    given = dict(action=torch.randn(T, B, 2), tokens=torch.randn(T, B, 7), is_first=torch.zeros(T, B).bool()) | changed
    if swap:
        given = {key: x.transpose(0, 1) for key, x in given.items()}
    return rssm.observe(rssm.initial(batch), **given)


def observe_and_imagine(rssm: Any) -> None:
    observe(rssm)
    rssm.open_loop(rssm.initial(B), torch.randn(T, B, 2))


PLACES = {
    **{v: ["input", "post", "prior", "post_stats", "prior_stats", "cell", "input.linear"] for v in VARIANTS[:4]},
    "dreamer_v3": ["post.0", "post.1", "prior.0", "prior.1", "prior.0.1", "core", "core.gates", "core.hidden.0",
                   "core.embed_carry", "core.embed_inputs.1", "prior.0.0.linear", "post.0.0.norm"],
}  # fmt: skip


@pytest.mark.parametrize(("variant", "place"), [(v, place) for v, places in PLACES.items() for place in places])
def test_an_rssm_names_the_replaced_layer(variant: str, place: str) -> None:
    rssm = make_rssm(variant)
    observe(rssm)
    owner, _, name = place.rpartition(".")
    setattr(rssm.get_submodule(owner), name, Twice())
    with pytest.raises(TypeError, match=f"is tests.test_replaced_layers.Twice, {REPLACED}"):
        observe_and_imagine(rssm)


def test_other_networks_name_the_replaced_layer() -> None:
    space = {"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}
    decoder = StridedDecoder(space, 8, 8, 1, 8, DREAMER_V2, PLANET)
    decoder.heads[0] = Twice()
    actor = Actor(8, 8, 1, space, style=DREAMER_V2, real="tanh_normal")
    actor.out = Twice()  # type: ignore[assignment]
    for network in (decoder, actor):
        with pytest.raises(TypeError, match=REPLACED):
            network(torch.randn(B, 8))
    controller = Controller(4, 8, 3, "tanh")
    controller.layers[0] = Twice()
    with pytest.raises(TypeError, match=rf"layers\[0\] of the controller is .*Twice, {REPLACED}"):
        controller.vector()
    rnn = MDNRNN(4, 1, 8)
    rnn.head.linear = Twice()  # type: ignore[assignment]
    with pytest.raises(TypeError, match=REPLACED):
        rnn.rollout_weights()


def test_parametrised_layers_are_read_as_they_compute() -> None:
    """torch's parametrizations change the weight, not the `forward`."""
    mlp, x = MLP(6, 8, 2), torch.randn(B, 6)
    nn.utils.parametrize.register_parametrization(mlp[0].linear, "weight", Twice())  # type: ignore[arg-type]
    assert mlp.is_plain
    assert_close(mlp(x), one_by_one(mlp, x))
    assert isinstance(mlp[0].params, tuple) and isinstance(LinearWeights(*mlp[0].params[:2]), tuple)  # type: ignore
    assert isinstance(mlp[0].norm, RMSNorm)  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("convert", ["half", "bfloat16"])
def test_a_converted_rssm_is_told_to_use_autocast(variant: str, convert: str) -> None:
    rssm = getattr(make_rssm(variant), convert)()
    message = r"the RSSM's parameters are torch.\w+: keep them in float32, and use torch.autocast"
    with pytest.raises(TypeError, match=message):
        observe(rssm)
    with pytest.raises(TypeError, match=message):
        rssm.open_loop(rssm.initial(B), torch.randn(T, B, 2))


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_major_sequences_are_named(variant: str) -> None:
    rssm = make_rssm(variant)
    with pytest.raises(
        ValueError, match=r"expected tokens time-major \[T, B, ...\] with the state's B = 3, got \[3, 5"
    ):
        observe(rssm, swap=True)
    with pytest.raises(ValueError, match=r"looks batch-major, use action.transpose\(0, 1\)"):
        rssm.open_loop(rssm.initial(B), torch.randn(B, T, 2))
    with pytest.raises(ValueError, match=r"state's B = 4, got \[5, 3, 7\]$"):
        observe(rssm, batch=4)


def test_batch_major_sequences_of_recurrent_layers() -> None:
    x = torch.randn(B, T, 6)
    for layer, hx in ((GRU(6, 4), torch.zeros(1, B, 4)), (LSTM(6, 4), (torch.zeros(1, B, 4),) * 2)):
        with pytest.raises(ValueError, match=r"input \[3, 5, 6\] is time-major \[T, B, X\] unless batch_first"):
            layer(x, hx)
    with pytest.raises(ValueError, match="expected input time-major"):
        LayerNormGRU(6, 4)(x, torch.zeros(B, 4))
    rnn = MDNRNN(5, 1, 4)
    with pytest.raises(ValueError, match="expected z time-major"):
        rnn(x[..., :5], x[..., 5:], rnn.initial(B))
