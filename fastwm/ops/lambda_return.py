from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, autocast_float32, check_alike, select, vmap_columns


def lambda_return(reward: Tensor, cont: Tensor, next_value: Tensor, lam: float | Tensor = 0.95) -> Tensor:
    """The lambda-return of every step of a sequence, in one pass over time.

        R_t = reward_t + cont_t * ((1 - lam_t) * next_value_t + lam_t * R_{t+1}),   R_T = next_value_{T-1}

    Args:
        reward: `[T, ...]`, T >= 1: the reward of each step, received on arriving in the next state. float32,
            float64 or bfloat16 (computed in float32); other floating dtypes are served by plain PyTorch.
        cont: like `reward`: the discount times the probability that the episode goes on; 0 where it ends.
        next_value: like `reward`: the value of the state arrived in. Its last row bootstraps the return.
        lam: 1 is the discounted sum, 0 the one-step target; a number, or a tensor that broadcasts to `reward`
            (0 where a sequence is cut without ending) and is rounded to its dtype. No gradient.

    Returns:
        `[T, ...]`, contiguous, in `reward`'s dtype (float32 under autocast). Differentiable in `reward`,
        `cont` and `next_value`: once, or any number of times with the `ref` backend.

    Raises:
        ValueError: T = 0; shapes, dtypes or devices differ; not floating-point; `lam` does not broadcast,
            lies on another device, or requires grad.

    Source: Sutton and Barto, "Reinforcement Learning", section 12.1; Hafner et al., "Dream to Control", eq. 6
    """
    reward, cont, next_value = autocast_float32(reward, cont, next_value)
    check_alike(reward=reward, cont=cont, next_value=next_value)
    if reward.dim() == 0 or len(reward) == 0:
        raise ValueError(f"expected [T, ...] with T >= 1, got {list(reward.shape)}")
    if isinstance(lam, Tensor):
        lam = _expand_lam(lam, reward)
    library = select(reward)
    if library is None:
        return ref.lambda_return(reward, cont, next_value, lam)
    lams, lam_value = (lam, 0.0) if isinstance(lam, Tensor) else (None, float(lam))
    ret: Tensor = _forward(library, reward, cont, next_value, lams, lam_value)
    return ret


def _expand_lam(lam: Tensor, reward: Tensor) -> Tensor:
    if lam.requires_grad:
        raise ValueError("lam requires grad, but lambda_return has no gradient with respect to lam: detach it")
    if lam.device != reward.device:
        raise ValueError(f"lam is on {lam.device}, the other tensors on {reward.device}")
    try:
        return lam.to(reward.dtype).expand(reward.shape)
    except RuntimeError:
        raise ValueError(f"lam {list(lam.shape)} does not broadcast to {list(reward.shape)}") from None


_forward = Operator("lambda_return", vmap_columns)
