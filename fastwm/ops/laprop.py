import torch
from torch import Tensor

from fastwm import _lib, ref
from fastwm.ops import _backend


@torch.no_grad()
def laprop_step_(
    params: list[Tensor],
    grads: list[Tensor],
    nu: list[Tensor],
    mu: list[Tensor],
    step: int | Tensor,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-20,
    agc: float = 0.3,
    pmin: float = 1e-3,
    warmup: int = 1000,
    apply: Tensor | None = None,
) -> None:
    """One step of LaProp with adaptive gradient clipping, of all tensors at once and in place.

        g <- g / max(1, |g| / (agc * max(pmin, |p|)))             per tensor; not at all where agc = 0
        nu <- b2 nu + (1 - b2) g^2;   g' = g / (sqrt(nu / (1 - b2^t)) + eps)
        mu <- b1 mu + (1 - b1) g';    p <- p - lr_t mu / (1 - b1^t)

    with `t = step + 1` and `lr_t = lr * min(1, step / warmup)`. The same bits whatever the number of threads.

    Args:
        params, grads, nu, mu: lists of the same length; a parameter, its gradient and its two moments have one
            shape. Fused for contiguous float32 or float64 tensors of one dtype and device; anything else is
            served by torch._foreach. `params`, `nu` and `mu` are changed, `grads` are not.
        step: updates done before this one; not changed. As an int64 tensor `[]` on the parameters' device it is
            read there, so that the call can be captured into a CUDA graph.
        lr: likewise, as a float32 tensor `[]`.
        apply: bool `[]` on the parameters' device: False leaves all tensors as they are, whatever the gradients hold.

    Raises:
        ValueError: the lists differ in length, or a tensor in shape from its parameter.

    Source: Ziyin et al., "LaProp"; Brock et al., "High-Performance Large-Scale Image Recognition Without
    Normalization" (AGC, here per tensor); the official DreamerV3 code
    """
    if not len(params) == len(grads) == len(nu) == len(mu):
        raise ValueError(f"expected lists of one length, got {[len(x) for x in (params, grads, nu, mu)]}")
    shapes = [p.shape for p in params]
    if any([x.shape for x in xs] != shapes for xs in (grads, nu, mu)):
        one, *others = next(xs for xs in zip(params, grads, nu, mu) if any(x.shape != xs[0].shape for x in xs))
        raise ValueError(f"expected gradient, nu and mu {list(one.shape)}, got {[list(x.shape) for x in others]}")
    if not params:
        return
    if _backend.forced_backend() == "ref":
        ref.laprop_step_(params, grads, nu, mu, step, lr, betas, eps, agc, pmin, warmup, apply)
    elif _fits(params, grads, nu, mu):
        step, step_at = (0, step) if isinstance(step, Tensor) else (step, None)
        lr, lr_at = (0.0, lr) if isinstance(lr, Tensor) else (float(lr), None)
        settings = *betas, eps, agc, pmin, warmup
        torch.ops.fastwm.laprop_step_(params, grads, nu, mu, step, step_at, lr, lr_at, apply, *settings)
        if not torch.compiler.is_compiling():  # what torch's own in-place operators do
            torch.autograd.graph.increment_version([*params, *nu, *mu])
    else:
        if apply is not None:
            before = [[x.clone() for x in xs] for xs in (params, nu, mu)]
        _foreach(params, grads, nu, mu, step, lr, betas, eps, agc, pmin, warmup)
        if apply is not None:
            for xs, olds in zip((params, nu, mu), before):
                for x, old in zip(xs, olds):
                    x.copy_(torch.where(apply, x, old))


def _fits(params: list[Tensor], *others: list[Tensor]) -> bool:
    """Whether the fused kernel can serve all the tensors."""
    first, *_ = params
    library = _backend.select(first)
    if library is None or library.backend == "triton" or first.dtype == torch.bfloat16:
        return False
    dtype, device = first.dtype, first.device
    return all(x.dtype == dtype and x.device == device and x.is_contiguous() for xs in (params, *others) for x in xs)


def _foreach(
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
) -> None:
    beta1, beta2 = betas
    if warmup:
        ramp = step / warmup
        lr = lr * (ramp.clamp(max=1) if isinstance(ramp, Tensor) else min(1.0, ramp))
    if agc:
        limit = torch.stack(torch._foreach_norm(params)).clamp(min=pmin) * agc
        excess = (torch.stack(torch._foreach_norm(grads)) / limit).clamp(min=1)
        grads = list(torch._foreach_div(grads, list(excess.unbind())))
    torch._foreach_mul_(nu, beta2)
    torch._foreach_addcmul_(nu, grads, grads, 1 - beta2)
    rms = torch._foreach_sqrt(torch._foreach_div(nu, 1 - beta2 ** (step + 1)))
    torch._foreach_add_(rms, eps)
    torch._foreach_lerp_(mu, torch._foreach_div(grads, rms), 1 - beta1)
    step_size = lr / (1 - beta1 ** (step + 1))
    if isinstance(step_size, Tensor):
        torch._foreach_sub_(params, torch._foreach_mul(mu, step_size))
    else:
        torch._foreach_add_(params, mu, alpha=-step_size)


if _lib.has_cpu:
    torch.library.register_fake("fastwm::laprop_step_", lambda *_: None)
