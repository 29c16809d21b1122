from typing import Literal

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, bf16_products, no_vmap
from fastwm.ops._declared import OPS, check
from fastwm.ops.cells import GateOrder
from fastwm.weights import MDNRNNWeights, Rollouts

__all__ = ["MDNRNNWeights", "Rollouts", "mdn_rnn_imagine"]

Squash = Literal["tanh", "car"]

_SHARED_BYTES = 98 * 1024  # that a block can have on every GPU since sm_80


def mdn_rnn_imagine(
    z: Tensor, controllers: Tensor, controller_bias: Tensor | None, w: MDNRNNWeights, seed_offset: Tensor, steps: int,
    extra: tuple[str, ...] = (), temperature: float = 1.0, squash: Squash = "tanh", forget_bias: float = 0.0,
    order: GateOrder = "ifgo", trajectories: bool = False,
) -> Rollouts:  # fmt: skip
    """Dream N episodes of World Models in one call, a population's controllers inside. No gradients.

        a_t = squash(W [z_t, c_t, h_t] + b),   h_{t+1}, c_{t+1} = LSTM([z_t, a_t], h_t, c_t)
        z_{t+1} ~ mixture(h_{t+1}) at a temperature,   done if logit(h_{t+1}) > 0

    A dream starts from the zero state and ends with `done` or after `steps` steps; whatever then becomes of its
    neighbours changes nothing in it. The decision that it is done is neither sampled nor tempered; where its logit is
    NaN the dream goes on, and its return is NaN: never to end must not pay.

    Args:
        z: `[N, Z]`, float32 or float64: the latents dreamt from.
        controllers: `[P, A, F]`, the weights of P linear controllers. Row n belongs to number `n // (N / P)`, so
            rollouts of a candidate lie side by side. What a controller reads follows from F: z alone (F = Z),
            [z, h] (Z + H), or [z, c, h] (Z + 2H). It reads the state before this step.
        controller_bias: `[P, A]`, or None.
        w: the model, see `MDNRNNWeights`. K follows from its shapes.
        seed_offset: `[N, 2]` int64: seed and offset of each dream's random numbers. Step t draws from the stream
            (seed, offset + t) of `philox_uniform` Z uniform numbers, and from its next whole block on Z normal
            ones. `(seed, dream << 32)` gives every dream its own; rows of equal pairs share their luck.
        steps: the longest a dream may take, at least 1.
        extra: what the extra outputs mean, in their order: any of "done" and "reward".
        temperature: see `mdn_sample`.
        squash: "tanh", or "car": tanh, and then gas `(a_1 + 1) / 2` and brake `clip(a_2, 0, 1)`.
        forget_bias, order: of the LSTM, see `lstm_step`. The original has 1 and "ijfo".
        trajectories: whether to return latents, actions and ends of all steps.

    Returns:
        `Rollouts`: lengths, returns and, if asked for, trajectories. Under autocast to bfloat16 the model's
        products are in bfloat16 with float32 sums where the CPU has them, and all else stays float32.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, unknown names, no steps, or a temperature that is
            not a positive finite number.

    Source: Ha and Schmidhuber, "World Models", and their code
    """
    if len({*extra}) < len(extra) or not {*extra} <= {"done", "reward"}:
        raise ValueError(f"extra holds 'done' and 'reward', at most once each, not {extra!r}")
    if squash not in ("tanh", "car") or order not in ("ifgo", "ijfo"):
        raise ValueError(f"squash is 'tanh' or 'car' and order 'ifgo' or 'ijfo', got {squash!r} and {order!r}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"expected a positive, finite temperature, got {temperature}")
    done, reward = (extra.index(name) if name in extra else -1 for name in ("done", "reward"))
    options = steps, done, reward, float(temperature), squash == "car", float(forget_bias), order == "ijfo"
    _check(z, controllers, controller_bias, *w, seed_offset, *options, trajectories, False)
    library = _forward.library(z)
    if z.is_cuda and _shared_bytes(w) > _SHARED_BYTES:
        library = None
    if library is None:
        return ref.mdn_rnn_imagine(
            z, controllers, controller_bias, w, seed_offset, steps, tuple(extra), temperature, squash, forget_bias,
            order, trajectories,
        )  # fmt: skip
    w = _by_column(w) if z.is_cuda else w
    with torch.no_grad():
        lengths, returns, *steps_of = _forward(
            library, z, controllers, controller_bias, *w, seed_offset, *options, trajectories, bf16_products(z)
        )  # fmt: skip
    return Rollouts(lengths, returns, *(steps_of if trajectories else (None, None, None)))


def _by_column(w: MDNRNNWeights) -> MDNRNNWeights:
    """Equal weights, of which neighbouring outputs lie side by side in memory, as threads of a GPU read them."""
    ih, hh, out = (x.mT.contiguous().mT for x in (w.weight_ih, w.weight_hh, w.out_weight))
    return w._replace(weight_ih=ih, weight_hh=hh, out_weight=out)


def _shared_bytes(w: MDNRNNWeights) -> int:
    """Shared memory of a block's dreams: h twice, c, the LSTM's input and the outputs."""
    return 32 * (3 * w.weight_hh.shape[1] + w.weight_ih.shape[1] + len(w.out_bias))


_forward = Operator("mdn_rnn_imagine", no_vmap("mdn_rnn_imagine"))
_check = check(OPS["mdn_rnn_imagine"])
