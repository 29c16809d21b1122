"""Triton kernels, as the operators of the library `fastwm_triton`. Imported only where Triton can run."""

from fastwm.triton import lambda_return, mdn, philox

__all__ = ["lambda_return", "mdn", "philox"]
