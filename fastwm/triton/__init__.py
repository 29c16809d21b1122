"""Triton kernels, as the operators of the library `fastwm_triton`. Imported only where Triton can run."""

from fastwm.triton import categorical, cells, lambda_return, mdn, norm_act, philox, symlog, two_hot

__all__ = [
    "categorical",
    "cells",
    "lambda_return",
    "mdn",
    "norm_act",
    "philox",
    "symlog",
    "two_hot",
]
