"""Every operator in plain PyTorch: what to read first, and what all other backends are tested against."""

from fastwm.ref.categorical import categorical_entropy, categorical_kl, straight_through_categorical
from fastwm.ref.lambda_return import lambda_return

__all__ = ["categorical_entropy", "categorical_kl", "lambda_return", "straight_through_categorical"]
