"""Triton kernels, as the operators of the library `fastwm_triton`. Imported only where Triton can run."""

from fastwm.triton import cells, lambda_return

__all__ = ["cells", "lambda_return"]
