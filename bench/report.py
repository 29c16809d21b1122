"""Turns pytest-benchmark's JSON into one Markdown table and one plot an operator family, beside the JSON.

python bench/report.py bench/results/bench.json
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS = "fastwm"
NOTE = (
    "A copy's speed is that of a warm copy that moves as many bytes, half read and half written. "
    "A case that reads more than it writes can exceed it."
)
Groups = dict[str, dict[str, dict[str, Any]]]  # group -> variant -> benchmark


def families(path: Path) -> dict[str, Groups]:
    """family -> group -> variant -> benchmark, in the order of the file."""
    found: dict[str, Groups] = defaultdict(lambda: defaultdict(dict))
    for bench in json.loads(path.read_text())["benchmarks"]:
        family = Path(bench["fullname"].split("::")[0]).stem.removeprefix("bench_")
        found[family][bench["group"]][bench["extra_info"]["variant"]] = bench
    return found


def microseconds(bench: dict[str, Any]) -> float:
    return 1e6 * bench["stats"]["median"] / bench["extra_info"]["calls"]


def table(family: str, groups: Groups) -> str:
    facts = next(iter(next(iter(groups.values())).values()))["extra_info"]
    lines = [
        f"# {family}",
        "",
        f"{facts['device']}, {facts['threads']} threads, torch {facts['torch']}; fastwm {facts['fastwm']}, "
        f"commit {facts['commit']}, library {facts['library']}. "
        "Medians of one run.",
        "",
        f"| case | variant | median, us | {OURS} is faster by | of a copy's speed | peak extra memory, KB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for group, variants in groups.items():
        for name, bench in variants.items():
            ratio = f"{microseconds(bench) / microseconds(variants[OURS]):.2f}" if OURS in variants else ""
            percent, peak = bench["extra_info"]["percent_of_copy"], bench["extra_info"]["peak_bytes"] / 2**10
            lines.append(f"| {group} | {name} | {microseconds(bench):.1f} | {ratio} | {percent:.0f}% | {peak:.0f} |")
    return "\n".join([*lines, "", NOTE]) + "\n"


def plot(family: str, groups: Groups, path: Path) -> None:
    names = list(dict.fromkeys(name for variants in groups.values() for name in variants))
    figure, axes = plt.subplots(figsize=(8, 0.5 + 0.25 * len(groups) * (len(names) + 1)), layout="constrained")
    for i, name in enumerate(names):
        rows = [(g, variants[name]) for g, variants in enumerate(groups.values()) if name in variants]
        at = [g + 0.8 * (i / len(names)) for g, _ in rows]
        axes.barh(at, [microseconds(bench) for _, bench in rows], 0.8 / len(names), label=name)
    axes.set_yticks([g + 0.4 * (1 - 1 / len(names)) for g in range(len(groups))], list(groups))
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="median time, us", title=family)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    results = Path(sys.argv[1])
    for family, groups in families(results).items():
        text = table(family, groups)
        print(text)
        results.with_name(f"{family}.md").write_text(text)
        plot(family, groups, results.with_name(f"{family}.png"))


if __name__ == "__main__":
    main()
