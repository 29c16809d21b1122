"""Draws the pictures of README and docs that come from figures: python build_tools/pictures.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from render import OURS, ROOT, TASKS, fastest_peer, latest, milliseconds

IMAGES = ROOT / "docs/images"
COLOURS = {"fastwm, bfloat16": "#0b7a75", "fastwm, float32": "#3fb8af", "fastest peer": "#b0b7bf"}


def draw_updates(path: Path) -> None:
    """One panel a task: an update of fastwm in both precisions and of the fastest peer."""
    figure, panels = plt.subplots(1, len(TASKS), figsize=(11, 2.1), layout="constrained")
    for panel, (task, key) in zip(panels, TASKS.items()):
        medians = latest(*key)
        peer = medians[fastest_peer(medians)]
        fp32, bf16 = (medians[who] for who in OURS)
        bars = panel.barh(list(COLOURS), [bf16, fp32, peer], color=list(COLOURS.values()))
        labels = [f"{milliseconds(bf16)}  ({peer / bf16:.1f}x)", f"{milliseconds(fp32)}  ({peer / fp32:.1f}x)",
                  milliseconds(peer)]  # fmt: skip
        panel.bar_label(bars, labels, padding=4, fontsize=9)
        panel.set_xlim(0, 1.25 * peer)
        panel.invert_yaxis()
        panel.set_title(task, fontsize=10)
        panel.set_xticks([])
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        if panel is not panels[0]:
            panel.set_yticks([])
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    draw_updates(IMAGES / "update.png")
