"""Draws the pictures of README and docs: python build_tools/pictures.py

Pictures of figures read bench/results. The others explain how something works.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from render import OURS, ROOT, TASKS, fastest_peer, latest, load, milliseconds

IMAGES = ROOT / "docs/images"
DARK, MAIN, LIGHT, PALE, GREY, WARM = "#0b7a75", "#3fb8af", "#a8dedb", "#e6f5f4", "#b0b7bf", "#f2b56b"

DRAWINGS: dict[str, Callable[[], None]] = {}


def drawing(function: Callable[[], None]) -> Callable[[], None]:
    DRAWINGS[function.__name__] = function
    return function


@contextmanager
def canvas(name: str, width: float, height: float) -> Iterator[Axes]:
    """An empty picture with one unit an inch, saved under `name`."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    yield axes
    figure.savefig(IMAGES / f"{name}.png", dpi=110)
    plt.close(figure)


def box(
    axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = PALE, **style: object
) -> None:
    """A rounded box with its lower left corner at (x, y)."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=colour, ec=DARK, lw=1)
    axes.add_patch(shape)
    options: dict[str, object] = {"ha": "center", "va": "center", "fontsize": 9, **style}
    axes.text(x + width / 2, y + height / 2, text, **options)  # type: ignore[arg-type]


def cell(axes: Axes, x: float, y: float, width: float, height: float, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), width, height, fc=colour, ec="white", lw=1))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style: object) -> None:
    options: dict[str, object] = {"arrowstyle": "-|>", "color": DARK, "lw": 1.2, "shrinkA": 1, "shrinkB": 1, **style}
    axes.annotate("", end, start, arrowprops=options)  # type: ignore[arg-type]


def note(axes: Axes, x: float, y: float, text: str, **style: object) -> None:
    options: dict[str, object] = {"ha": "center", "va": "center", "fontsize": 9, **style}
    axes.text(x, y, text, **options)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- figures


@drawing
def update() -> None:
    """One panel a task: an update of fastwm in both precisions and of the fastest peer."""
    names = {"fastwm, bfloat16": DARK, "fastwm, float32": MAIN, "fastest peer": GREY}
    figure, panels = plt.subplots(1, len(TASKS), figsize=(11, 2.1), layout="constrained")
    for panel, (task, key) in zip(panels, TASKS.items()):
        medians = latest(*key)
        peer = medians[fastest_peer(medians)]
        fp32, bf16 = (medians[who] for who in OURS)
        bars = panel.barh(list(names), [bf16, fp32, peer], color=list(names.values()))
        labels = [f"{milliseconds(ms)}  ({peer / ms:.1f}x)" for ms in (bf16, fp32)] + [milliseconds(peer)]
        panel.bar_label(bars, labels, padding=4, fontsize=9)
        panel.set_xlim(0, 1.25 * peer)
        panel.invert_yaxis()
        panel.set_title(task, fontsize=10)
        panel.set_xticks([])
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        if panel is not panels[0]:
            panel.set_yticks([])
    figure.savefig(IMAGES / "update.png", dpi=130)
    plt.close(figure)


# -------------------------------------------------------------------------------------------------------- concepts


@drawing
def finger_spin() -> None:
    """Our scores on a task of the published table over its curve."""
    from fastwm.runner.curves import published

    (row,) = load("reproduce/dmc_finger_spin.json")["rows"]
    curve, score = published("dmc_proprio")[row["task"]], row["evaluation"]
    shown = curve.steps <= 100_000
    steps, mean, std = curve.steps[shown], curve.mean[shown], curve.std[shown]
    figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
    panel.plot(steps, mean, color=GREY, label=f"published, {curve.seeds} seeds, and 2 deviations")
    panel.fill_between(steps, mean - 2 * std, mean + 2 * std, color=GREY, alpha=0.25, lw=0)
    panel.plot(row["environment_steps"], row["mean"], "o", color=MAIN, label="fastwm, episodes of training")
    panel.errorbar(score["environment_steps"], score["mean"], score["std"], fmt="s", color=DARK, capsize=3,
                   label=f"fastwm, {score['episodes']} episodes after training")  # fmt: skip
    panel.set(xlabel="environment steps", ylabel="return", title="dmc_proprio: finger_spin, one seed", ylim=(-20, 1000))
    panel.grid(alpha=0.3)
    panel.legend(loc="upper left", fontsize=8)
    figure.savefig(IMAGES / "finger_spin.png", dpi=110)
    plt.close(figure)


@drawing
def rssm() -> None:
    with canvas("rssm", 8, 3.1) as axes:
        box(axes, 0.2, 1.9, 1.3, 0.5, "deter $h_{t-1}$", LIGHT)
        box(axes, 0.2, 1.2, 1.3, 0.5, "stoch $z_{t-1}$", LIGHT)
        box(axes, 0.2, 0.5, 1.3, 0.5, "action $a_{t-1}$", WARM)
        box(axes, 2.2, 1.1, 1.1, 0.7, "recurrent\ncell $f$", PALE)
        box(axes, 3.9, 1.2, 1.1, 0.5, "deter $h_t$", LIGHT)
        for y in (2.15, 1.45, 0.75):
            arrow(axes, (1.5, y), (2.2, 1.45))
        arrow(axes, (3.3, 1.45), (3.9, 1.45))
        box(axes, 5.6, 2.2, 1.1, 0.5, "prior $p$", PALE)
        box(axes, 5.6, 0.7, 1.1, 0.5, "posterior $q$", PALE)
        arrow(axes, (5.0, 1.6), (5.6, 2.4))
        arrow(axes, (5.0, 1.3), (5.6, 1.0))
        box(axes, 3.9, 0.1, 1.1, 0.5, "tokens $e_t$", WARM)
        arrow(axes, (5.0, 0.35), (5.6, 0.8))
        box(axes, 7.0, 2.2, 0.8, 0.5, "$\\hat z_t$", LIGHT)
        box(axes, 7.0, 0.7, 0.8, 0.5, "$z_t$", LIGHT)
        arrow(axes, (6.7, 2.45), (7.0, 2.45))
        arrow(axes, (6.7, 0.95), (7.0, 0.95))
        arrow(axes, (6.15, 1.2), (6.15, 2.2), arrowstyle="<|-|>", linestyle="--")
        note(axes, 6.4, 1.7, "KL", fontsize=10)
        note(axes, 7.4, 2.88, "imagine, open_loop", fontsize=8)
        note(axes, 7.4, 0.5, "observe", fontsize=8)


@drawing
def dataflow() -> None:
    with canvas("dataflow", 9, 2.6) as axes:
        box(axes, 0.2, 1.5, 1.5, 0.7, "environments", WARM)
        box(axes, 2.5, 1.5, 1.5, 0.7, "replay\nrows", PALE)
        box(axes, 4.8, 1.5, 1.7, 0.7, "world model\nobserve", LIGHT)
        box(axes, 7.3, 1.5, 1.5, 0.7, "imagine", LIGHT)
        box(axes, 7.3, 0.2, 1.5, 0.7, "actor, critic", MAIN)
        box(axes, 0.2, 0.2, 1.5, 0.7, "act", MAIN)
        arrow(axes, (1.7, 1.85), (2.5, 1.85))
        note(axes, 2.1, 2.05, "rows", fontsize=8)
        arrow(axes, (4.0, 1.85), (4.8, 1.85))
        note(axes, 4.4, 2.2, "windows\n[1+T, B]", fontsize=8)
        arrow(axes, (6.5, 1.85), (7.3, 1.85))
        note(axes, 6.9, 2.15, "states\n[T, B]", fontsize=8)
        arrow(axes, (8.05, 1.5), (8.05, 0.9))
        note(axes, 8.45, 1.2, "returns", fontsize=8)
        arrow(axes, (7.3, 0.55), (1.7, 0.55))
        note(axes, 4.4, 0.72, "policy weights", fontsize=8)
        arrow(axes, (0.95, 0.9), (0.95, 1.5))
        note(axes, 1.4, 1.2, "actions", fontsize=8)
        arrow(axes, (4.8, 1.62), (4.0, 1.62), linestyle="--")
        note(axes, 4.4, 1.38, "fresh latents (V3)", fontsize=8)


# --------------------------------------------------------------------------------------------------------- kernels


@drawing
def kernel_rows() -> None:
    """Point-wise families: one pass over a row."""
    with canvas("kernel_rows", 8, 2.4) as axes:
        steps = ["softmax", "unimix", "cumulative\nsum", "draw", "one-hot", "log-prob"]
        note(axes, 0.9, 2.1, "eager", ha="left", weight="bold")
        for i, step in enumerate(steps):
            box(axes, 1.6 + 1.03 * i, 1.75, 0.75, 0.5, step, PALE, fontsize=7.5)
            cell(axes, 1.7 + 1.03 * i, 1.35, 0.55, 0.16, GREY)
            arrow(axes, (1.97 + 1.03 * i, 1.75), (1.97 + 1.03 * i, 1.52))
        note(axes, 0.9, 1.43, "memory", fontsize=8, ha="left")
        note(axes, 0.9, 0.62, "fused", ha="left", weight="bold")
        cell(axes, 1.6, 0.5, 0.9, 0.24, GREY)
        box(axes, 3.0, 0.3, 3.1, 0.64, "load a row, all steps in registers and L1", LIGHT)
        cell(axes, 6.6, 0.5, 0.9, 0.24, GREY)
        arrow(axes, (2.5, 0.62), (3.0, 0.62))
        arrow(axes, (6.1, 0.62), (6.6, 0.62))
        note(axes, 2.05, 0.3, "read once", fontsize=8)
        note(axes, 7.05, 0.3, "written once", fontsize=8)


@drawing
def kernel_returns() -> None:
    """lambda_return: backward through time, a strip of the batch in L1."""
    with canvas("kernel_returns", 8, 2.3) as axes:
        for t in range(6):
            for b in range(12):
                cell(axes, 0.9 + 0.4 * b, 0.35 + 0.25 * t, 0.4, 0.25, MAIN if 4 <= b < 8 else LIGHT)
        note(axes, 3.3, 2.05, "batch B: strips of columns, shared out to the threads", fontsize=8.5)
        note(axes, 0.5, 1.1, "time", rotation=90)
        arrow(axes, (0.72, 1.8), (0.72, 0.4))
        arrow(axes, (3.3, 0.35), (3.3, 1.85), color="white", lw=2)
        note(axes, 6.8, 1.35, "$R_t = r + c\\,((1-\\lambda) v + \\lambda R_{t+1})$", fontsize=10)
        note(axes, 6.8, 0.85, "R of a strip stays in L1;\n16 columns a vector", fontsize=8.5)
        note(axes, 3.3, 0.15, "last step first", fontsize=8)


@drawing
def kernel_gemm() -> None:
    """A product: a tile of rows by a panel of packed weights."""
    with canvas("kernel_gemm", 8, 2.8) as axes:
        for i in range(8):
            cell(axes, 0.3, 0.9 + 0.15 * i, 1.8, 0.15, LIGHT if i % 2 else PALE)
        note(axes, 1.2, 2.35, "8 rows of x", fontsize=8.5)
        note(axes, 1.2, 0.7, "K", fontsize=8.5)
        note(axes, 2.35, 1.5, "$\\times$", fontsize=16)
        for panel in range(4):
            for k in range(8):
                cell(axes, 2.65 + 0.62 * panel, 0.9 + 0.15 * k, 0.3, 0.15, MAIN if panel == 1 else LIGHT)
                cell(axes, 2.95 + 0.62 * panel, 0.9 + 0.15 * k, 0.3, 0.15, MAIN if panel == 1 else LIGHT)
        note(axes, 3.9, 2.35, "weights packed in panels:\ntwo vectors of columns each", fontsize=8.5)
        note(axes, 3.57, 0.7, "in use", fontsize=8)
        note(axes, 4.35, 0.7, "fetched ahead", fontsize=8)
        note(axes, 5.4, 1.5, "=", fontsize=16)
        for i in range(8):
            cell(axes, 5.8, 0.9 + 0.15 * i, 0.6, 0.15, WARM)
        note(axes, 6.1, 2.35, "a tile: 8 x 32 sums\nin registers", fontsize=8.5)
        box(axes, 6.75, 1.15, 1.1, 0.7, "norm, gates,\nsample", PALE, fontsize=8)
        arrow(axes, (6.4, 1.5), (6.75, 1.5))
        note(axes, 4.0, 0.25, "Rows that a tile has just made are used while they are in cache.", fontsize=8.5)


@drawing
def kernel_sequence() -> None:
    """Sequences on the CPU: what is hoisted, and the two ways to share work."""
    with canvas("kernel_sequence", 9, 3.3) as axes:
        box(
            axes,
            0.2,
            2.35,
            8.6,
            0.5,
            "parts that wait for nothing (inputs, actions, tokens): one product over all T x B rows, before the loop",
            PALE,
        )
        for t in range(4):
            x = 0.55 + 2.1 * t
            arrow(axes, (x + 0.75, 2.35), (x + 0.75, 2.02))
            box(axes, x, 1.5, 1.5, 0.5, ["step 0", "step 1", "step 2", "step T-1"][t], LIGHT)
            if t:
                arrow(axes, (x - 0.6, 1.75), (x, 1.75), linestyle="--" if t == 3 else "-")
        note(
            axes,
            4.5,
            3.1,
            "is_first resets rows inside the loop; backward mirrors it and adds up the weights' gradients in cache",
            fontsize=8.5,
        )
        for i in range(2):
            for t in range(8):
                cell(axes, 0.6 + 0.38 * t, 0.75 - 0.28 * i, 0.36, 0.24, (MAIN, WARM)[i])
        note(axes, 2.1, 0.2, "small weights: a thread walks its rows alone", fontsize=8.5)
        for t in range(8):
            cell(axes, 5.2 + 0.38 * t, 0.75, 0.28, 0.24, MAIN)
            cell(axes, 5.2 + 0.38 * t, 0.47, 0.28, 0.24, WARM)
            axes.plot([5.52 + 0.38 * t] * 2, [0.42, 1.03], color=DARK, lw=1.2)
        note(axes, 6.7, 0.2, "large weights: a team shares columns, a barrier after each stage", fontsize=8.5)


@drawing
def kernel_imagine() -> None:
    """Imagination on the CPU: a block of rows walks the whole horizon."""
    with canvas("kernel_imagine", 9, 2.7) as axes:
        parts = ["actor,\nsample", "recurrent\ncell", "prior,\nsample", "heads\n(readouts)"]
        for i, part in enumerate(parts):
            box(axes, 1.9 + 1.55 * i, 1.3, 1.2, 0.75, part, (WARM, LIGHT, LIGHT, PALE)[i])
            if i:
                arrow(axes, (1.55 + 1.55 * i, 1.67), (1.9 + 1.55 * i, 1.67))
        for i in range(6):
            cell(axes, 0.4, 1.25 + 0.14 * i, 0.9, 0.14, MAIN)
        note(axes, 0.85, 2.3, "64 rows", fontsize=8.5)
        arrow(axes, (1.3, 1.67), (1.9, 1.67))
        axes.annotate("", (2.5, 1.3), (6.2, 1.3), arrowprops={"arrowstyle": "-|>", "color": DARK, "lw": 1.2,
                                                             "connectionstyle": "arc3,rad=-0.25"})  # fmt: skip
        note(axes, 4.35, 0.62, "next step, H times; the rows never leave the thread's cache", fontsize=8.5)
        note(axes, 4.5, 0.2, "Rows are independent, so threads take blocks of rows and never wait.", fontsize=8.5)
        note(axes, 8.45, 1.67, "reward,\ncontinuation,\nvalues", fontsize=8)
        arrow(axes, (7.75, 1.67), (8.0, 1.67))


@drawing
def kernel_mlp() -> None:
    """mlp: rows pass through all layers; a one-hot input is a gather."""
    with canvas("kernel_mlp", 8.5, 2.6) as axes:
        for i in range(6):
            cell(axes, 0.3, 1.2 + 0.14 * i, 0.8, 0.14, MAIN)
        note(axes, 0.7, 2.25, "deter", fontsize=8.5)
        for i in range(6):
            for k in range(8):
                cell(axes, 0.3 + 0.1 * k, 0.25 + 0.11 * i, 0.1, 0.11, DARK if k == (3 * i + 1) % 8 else PALE)
        note(axes, 1.65, 0.55, "one-hot:\nrows of weights\nadded, no product", fontsize=8)
        for layer in range(3):
            box(axes, 2.5 + 1.5 * layer, 1.25, 1.15, 0.75, f"linear {layer + 1}\nnorm\nactivation", LIGHT, fontsize=8)
            arrow(axes, (2.15 + 1.5 * layer if layer else 1.1, 1.62), (2.5 + 1.5 * layer, 1.62))
        arrow(axes, (2.2, 0.7), (2.9, 1.25))
        box(axes, 7.0, 1.25, 1.1, 0.75, "output", WARM)
        arrow(axes, (6.65, 1.62), (7.0, 1.62))
        note(axes, 4.9, 2.35, "64 rows stay in cache through all layers", fontsize=8.5)
        note(
            axes,
            5.3,
            0.55,
            "Saved for backward: each layer before its norm, and only where a gradient is wanted.",
            fontsize=8,
        )


@drawing
def kernel_dreams() -> None:
    """mdn_rnn_imagine: a ring of dreams keeps tiles full."""
    with canvas("kernel_dreams", 8.5, 2.6) as axes:
        for i in range(14):
            cell(axes, 0.4 + 0.3 * i, 1.9, 0.28, 0.28, MAIN if i < 4 else LIGHT)
        note(axes, 2.5, 2.4, "ring of dreams that live", fontsize=8.5)
        box(axes, 0.4, 0.7, 1.3, 0.8, "take\n64 dreams", PALE)
        box(axes, 2.1, 0.7, 2.9, 0.8, "32 steps: controller, LSTM,\nlogits, drawn components, end?", LIGHT)
        box(axes, 5.4, 0.7, 1.3, 0.8, "put back\nthose that live", PALE)
        arrow(axes, (1.0, 1.9), (1.0, 1.5))
        arrow(axes, (1.7, 1.1), (2.1, 1.1))
        arrow(axes, (5.0, 1.1), (5.4, 1.1))
        axes.annotate("", (4.7, 2.04), (6.05, 1.5), arrowprops={"arrowstyle": "-|>", "color": DARK, "lw": 1.2})
        note(axes, 7.6, 1.1, "ended: return\nand length", fontsize=8.5)
        arrow(axes, (6.7, 1.1), (7.05, 1.1))
        note(
            axes,
            4.25,
            0.3,
            "Tiles stay full although dreams end at different times, and no thread is left with the long ones.",
            fontsize=8.5,
        )


@drawing
def kernel_laprop() -> None:
    """LaProp: two passes over each tensor, all tensors in one call."""
    with canvas("kernel_laprop", 8, 2.2) as axes:
        widths = [0.5, 1.2, 0.3, 2.0, 0.7, 1.3, 0.4, 0.9]
        x = 0.35
        for i, width in enumerate(widths):
            cell(axes, x, 1.55, width, 0.28, LIGHT if i % 2 else MAIN)
            x += width
        note(
            axes,
            4,
            2.02,
            "all tensors of the model: one list, cut into chunks, shared out to the threads",
            fontsize=8.5,
        )
        box(axes, 0.5, 0.5, 2.9, 0.75, "pass 1: norms of gradient\nand parameter, per tensor", PALE)
        box(axes, 4.4, 0.5, 3.1, 0.75, "pass 2: clip, mean square,\nmomentum, step", LIGHT)
        arrow(axes, (3.4, 0.87), (4.4, 0.87))
        note(axes, 4, 0.2, "reads p, g, then p, g, nu, mu; writes p, nu, mu", fontsize=8.5)


@drawing
def kernel_philox() -> None:
    """Philox: number i of a stream needs no state."""
    with canvas("kernel_philox", 8, 1.9) as axes:
        box(axes, 0.2, 1.05, 1.9, 0.5, "seed: key", WARM)
        box(axes, 0.2, 0.35, 1.9, 0.5, "offset, block: counter", WARM)
        box(axes, 2.9, 0.6, 1.9, 0.7, "ten rounds:\nmultiply, xor", LIGHT)
        box(axes, 5.6, 0.6, 2.1, 0.7, "4 words: uniforms,\nor normals by Box-Muller", PALE, fontsize=8)
        arrow(axes, (2.1, 1.3), (2.9, 1.0))
        arrow(axes, (2.1, 0.6), (2.9, 0.9))
        arrow(axes, (4.8, 0.95), (5.6, 0.95))
        note(axes, 5, 0.25, "Any thread, backend or order of rows makes the same numbers.", fontsize=8.5)


@drawing
def kernel_gpu_sequence() -> None:
    """Sequences on the GPU: one launch whose blocks wait for each other between stages."""
    with canvas("kernel_gpu_sequence", 9, 3.0) as axes:
        stages = ["hidden", "gates", "posterior", "logits", "sample"]
        for s, stage in enumerate(stages):
            x = 1.5 + 1.4 * s
            note(axes, x + 0.5, 2.45, stage, fontsize=8.5)
            for block in range(4):
                cell(axes, x, 1.95 - 0.35 * block, 1.0, 0.3, (MAIN, LIGHT)[block % 2])
            axes.plot([x + 1.2] * 2, [0.85, 2.3], color=DARK, lw=1.4)
        for block in range(4):
            note(axes, 0.8, 2.1 - 0.35 * block, f"block {block}" if block < 3 else "...", fontsize=8.5)
        note(axes, 4.9, 2.8, "one launch for the whole sequence; the five stages repeat for every step", fontsize=9)
        note(axes, 4.9, 0.55, "lines: a counter in memory; every block adds one and waits for all", fontsize=8.5)
        note(axes, 4.9, 0.2, "a tile is 16 rows by 16 columns of a layer; tensor cores in bfloat16", fontsize=8.5)


@drawing
def kernel_graph() -> None:
    """A whole update as one CUDA graph."""
    with canvas("kernel_graph", 9, 2.0) as axes:
        note(axes, 0.7, 1.5, "launched", weight="bold")
        for i in range(18):
            cell(axes, 1.5 + 0.4 * i, 1.38, 0.12, 0.26, MAIN)
        note(axes, 5, 1.85, "the GPU waits for the CPU to launch each kernel", fontsize=8.5)
        note(axes, 0.7, 0.6, "graph", weight="bold")
        for i in range(18):
            cell(axes, 1.5 + 0.13 * i, 0.48, 0.12, 0.26, MAIN)
        note(axes, 5.9, 0.6, "recorded once, replayed; nothing in it waits for the CPU", fontsize=8.5)
        arrow(axes, (1.5, 0.2), (8.7, 0.2))
        note(axes, 8.75, 0.35, "time", fontsize=8)


if __name__ == "__main__":
    for draw in DRAWINGS.values():
        draw()
