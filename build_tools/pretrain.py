"""Make a run that comes with the package: weights in float16, no optimiser, no replay, and its card.

    python build_tools/pretrain.py LOGDIR NAME COMMIT "COMMAND that trained it"

The run must have been evaluated (`fastwm eval LOGDIR`); the float16 weights are evaluated again for the card.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

import fastwm
from fastwm.runner import checkpoint
from fastwm.runner.config import write_config
from fastwm.runner.evaluate import open_run
from fastwm.runner.pretrained import FOLDER


class Half(torch.nn.Module):
    """Weights as they are saved."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        self.tensors = {key: x.half() if x.is_floating_point() else x for key, x in tensors.items()}

    def state_dict(self) -> dict[str, torch.Tensor]:  # type: ignore[override]
        return self.tensors

    def get_extra_state(self) -> dict[str, object]:
        return {}


def main() -> None:
    logdir, (name, commit, command) = Path(sys.argv[1]), sys.argv[2:]
    saved, folder = open_run(logdir), FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_config(folder / "config.yaml", saved.name, replace(saved.config, logdir=""))
    meta = {key: saved.meta[key] for key in ("agent", "obs_space", "act_space")}
    checkpoint.save(folder, saved.meta["step"], Half(load_file(saved.path / checkpoint.WEIGHTS)), {}, meta)
    score = fastwm.evaluate(folder, episodes=20)
    before = json.loads((logdir / "eval.json").read_text())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    scores = [f"{each['mean']:.1f} +- {each['std']:.1f} over {each['episodes']} episodes" for each in (score, before)]
    (folder / "card.md").write_text(
        f"# {name}\n\n{saved.name} on `{saved.config.env}`, {saved.meta['step']:,} steps.\n\n    {command}\n\n"
        f"Trained at commit {commit}, packed with torch {torch.__version__}. Mean return {scores[0]} with these "
        f"float16 weights, {scores[1]} with the run's own. {size / 1000:,.0f} kB.\n"
    )
    print((folder / "card.md").read_text())


if __name__ == "__main__":
    main()
