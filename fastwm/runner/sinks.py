"""TensorBoard and Weights & Biases: the metrics and pictures of a run, beside its own folder."""

from pathlib import Path
from typing import Any

from fastwm.extras import needs
from fastwm.runner.config import RunConfig
from fastwm.runner.log import Sink


class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, logdir: Path):
        with needs("log", "--tensorboard"):
            from tensorboardX import SummaryWriter
        self.writer = SummaryWriter(str(logdir))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """As it is: TensorBoard plays a GIF, which `add_video` would make anew with a package of its own."""
        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self.writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its files are in the run's folder. A run that goes on goes on there too."""

    def __init__(self, logdir: Path, config: dict[str, Any]):
        with needs("wandb", "--wandb"):
            import wandb
        self.wandb = wandb
        folder = str(logdir.resolve())
        name = "".join(letter if letter.isalnum() else "-" for letter in folder).strip("-")[-60:]
        self.run = wandb.init(project="fastwm", name=logdir.name, id=name, resume="allow", dir=folder, config=config,
                              reinit="create_new")  # fmt: skip

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        film = path.suffix == ".gif"
        shown = self.wandb.Video(str(path), format="gif") if film else self.wandb.Image(str(path))
        self.run.log({name: shown}, step=step)

    def close(self) -> None:
        self.run.finish()


def sinks_of(config: RunConfig[Any], logdir: Path, settings: dict[str, Any]) -> list[Sink]:
    """Those that the settings ask for."""
    sinks: list[Sink] = [TensorBoard(logdir)] if config.tensorboard else []
    return [*sinks, WeightsAndBiases(logdir, settings)] if config.wandb else sinks
