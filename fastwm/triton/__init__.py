"""Triton kernels, as the operators of the library `fastwm_triton`. Imported only where Triton can run."""

from fastwm.triton import lambda_return, norm_act, symlog, two_hot

__all__ = ["lambda_return", "norm_act", "symlog", "two_hot"]
