from typing import Any, Literal

import torch
from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, bf16_products, no_vmap
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
    _check(z, controllers, controller_bias, w, seed_offset, steps, extra, temperature, squash, order)
    library = _forward.library(z)
    if z.is_cuda and _shared_bytes(w) > _SHARED_BYTES:
        library = None
    if library is None:
        return ref.mdn_rnn_imagine(
            z, controllers, controller_bias, w, seed_offset, steps, tuple(extra), temperature, squash, forget_bias,
            order, trajectories,
        )  # fmt: skip
    done, reward = (extra.index(name) if name in extra else -1 for name in ("done", "reward"))
    w = _by_column(w) if z.is_cuda else w
    with torch.no_grad():
        lengths, returns, *steps_of = _forward(
            library, z, controllers, controller_bias, *w, seed_offset, steps, done, reward, float(temperature),
            squash == "car", float(forget_bias), order == "ijfo", trajectories, bf16_products(z),
        )  # fmt: skip
    return Rollouts(lengths, returns, *(steps_of if trajectories else (None, None, None)))


def _by_column(w: MDNRNNWeights) -> MDNRNNWeights:
    """Equal weights, of which neighbouring outputs lie side by side in memory, as threads of a GPU read them."""
    ih, hh, out = (x.mT.contiguous().mT for x in (w.weight_ih, w.weight_hh, w.out_weight))
    return w._replace(weight_ih=ih, weight_hh=hh, out_weight=out)


def _shared_bytes(w: MDNRNNWeights) -> int:
    """What a block's dreams occupy: h twice, c, the LSTM's input and the outputs."""
    return 32 * (3 * w.weight_hh.shape[1] + w.weight_ih.shape[1] + len(w.out_bias))


def _check(
    z: Tensor, controllers: Tensor, controller_bias: Tensor | None, w: MDNRNNWeights, seed_offset: Tensor, steps: int,
    extra: tuple[str, ...], temperature: float, squash: str, order: str,
) -> None:  # fmt: skip
    if z.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected z of float32 or float64, got {z.dtype}")
    if (
        z.dim() != 2
        or controllers.dim() != 3
        or w.weight_hh.dim() != 2
        or w.weight_ih.dim() != 2
        or 0 in controllers.shape
        or z.shape[1] == 0
    ):
        shapes = [list(x.shape) for x in (z, controllers, w.weight_hh)]
        raise ValueError(f"expected z [N, Z], controllers [P, A, F] and weight_hh [4H, H], none empty, got {shapes}")
    (N, Z), (P, A, features), H = z.shape, controllers.shape, w.weight_hh.shape[1]
    if N % P:
        raise ValueError(f"{N} dreams do not divide among {P} controllers")
    if features not in (Z, Z + H, Z + 2 * H):
        raise ValueError(f"controllers read {Z} (z), {Z + H} (z, h) or {Z + 2 * H} (z, c, h) features, not {features}")
    inputs, outputs = w.weight_ih.shape[-1], w.out_weight.shape[0]
    if inputs not in (Z + A, Z + A + 1):
        raise ValueError(
            f"expected an input of z {Z}, action {A} and maybe the restart flag, got weight_ih [., {inputs}]"
        )
    if len({*extra}) < len(extra) or not {*extra} <= {"done", "reward"}:
        raise ValueError(f"extra holds 'done' and 'reward', at most once each, not {extra!r}")
    if outputs <= len(extra) or (outputs - len(extra)) % (3 * Z):
        raise ValueError(f"expected {len(extra)} + 3 * {Z} * K outputs, got {outputs}")
    expected: dict[str, Any] = {
        "controllers": (controllers, (P, A, features)), "weight_ih": (w.weight_ih, (4 * H, inputs)),
        "weight_hh": (w.weight_hh, (4 * H, H)), "bias": (w.bias, (4 * H,)),
        "out_weight": (w.out_weight, (outputs, H)), "out_bias": (w.out_bias, (outputs,)),
    }  # fmt: skip
    if controller_bias is not None:
        expected["controller_bias"] = controller_bias, (P, A)
    for name, (x, shape) in expected.items():
        if x.shape != shape or x.dtype != z.dtype or x.device != z.device:
            raise ValueError(
                f"expected {name} {list(shape)} {z.dtype} {z.device}, got {list(x.shape)} {x.dtype} {x.device}"
            )
    if seed_offset.shape != (N, 2) or seed_offset.dtype != torch.int64 or seed_offset.device != z.device:
        raise ValueError(
            f"expected seed_offset [{N}, 2] torch.int64 {z.device}, "
            f"got {list(seed_offset.shape)} {seed_offset.dtype} {seed_offset.device}"
        )
    if steps < 1:
        raise ValueError(f"expected at least one step, got {steps}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"expected a positive, finite temperature, got {temperature}")
    if squash not in ("tanh", "car") or (squash == "car" and A != 3):
        raise ValueError(f"squash is 'tanh', or 'car' for 3 actions, not {squash!r} for {A}")
    if order not in ("ifgo", "ijfo"):
        raise ValueError(f"order must be 'ifgo' or 'ijfo', not {order!r}")


_forward = Operator("mdn_rnn_imagine", no_vmap("mdn_rnn_imagine"))
