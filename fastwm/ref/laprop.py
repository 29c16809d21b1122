import torch
from torch import Tensor


def laprop_step_(
    params: list[Tensor],
    grads: list[Tensor],
    nu: list[Tensor],
    mu: list[Tensor],
    step: int | Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    agc: float,
    pmin: float,
    warmup: int,
    apply: Tensor | None = None,
) -> None:
    """One step of LaProp, tensor by tensor: see `fastwm.ops.laprop_step_`."""
    if apply is not None and not apply:
        return
    done, (beta1, beta2) = float(step), betas
    step_size = float(lr) * (min(1.0, done / warmup) if warmup else 1.0) / (1 - beta1 ** (done + 1))
    for p, g, n, m in zip(params, grads, nu, mu, strict=True):
        if agc:
            g = g / (g.norm() / (agc * p.norm().clamp(min=pmin))).clamp(min=1)
        n.mul_(beta2).add_((1 - beta2) * g.square())
        m.lerp_(g / (torch.sqrt(n / (1 - beta2 ** (done + 1))) + eps), 1 - beta1)
        p.sub_(step_size * m)
