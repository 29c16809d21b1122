"""Training, evaluation and everything a run writes to its folder."""

from fastwm.extras import needs

with needs("agents", "fastwm.runner"):
    from fastwm.runner.evaluate import evaluate, load
    from fastwm.runner.start import train
    from fastwm.runner.train import Trainer

__all__ = ["Trainer", "evaluate", "load", "train"]
