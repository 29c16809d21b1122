"""Every operator in plain PyTorch: what to read first, and what all other backends are tested against."""

from fastwm.ref.lambda_return import lambda_return

__all__ = ["lambda_return"]
