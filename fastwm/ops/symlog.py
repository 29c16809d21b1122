from collections.abc import Callable

from torch import Tensor

from fastwm import ref
from fastwm.ops._backend import Operator, autocast_float32, select, vmap_rows


def symlog(x: Tensor) -> Tensor:
    """The symmetric logarithm: compresses large magnitudes of either sign, is the identity near zero.

        y = sign(x) ln(1 + |x|),   dy/dx = 1 / (1 + |x|)

    Args:
        x: any shape. float32, float64 or bfloat16 (computed in float32); other floating dtypes are served by
            plain PyTorch.

    Returns:
        Like `x`, contiguous, in its dtype (float32 under autocast). Differentiable once, or any number of times
        with the `ref` backend. The derivative at 0 is 1, where autograd of the formula as written gives 0.

    Raises:
        ValueError: `x` is not floating-point.

    Source: Hafner et al., "Mastering Diverse Domains through World Models"
    """
    return _apply(_symlog, ref.symlog, x)


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`; see there for arguments, dtypes and errors.

    y = sign(x) (e^|x| - 1),   dy/dx = e^|x|
    """
    return _apply(_symexp, ref.symexp, x)


def _apply(operator: Operator, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    if not x.dtype.is_floating_point:
        raise ValueError(f"expected a floating-point tensor, got {x.dtype}")
    (x,) = autocast_float32(x)
    library = select(x)
    y: Tensor = plain(x) if library is None else operator(library, x)
    return y


_symlog = Operator("symlog", vmap_rows)
_symexp = Operator("symexp", vmap_rows)
