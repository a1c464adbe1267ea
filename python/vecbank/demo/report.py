"""From results to report.md, figures.json and what is printed. Every number here was computed in this run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import info
from .codebook import Codebook
from .search import NEIGHBOURS, Search
from .speed import Timing
from .stitching import PICTURE_ANCHORS, Stitching


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; all but the first are flush right."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w if i == 0 else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def stitching_text(r: Stitching) -> list[str]:
    scores = {f"absolute, {r.latent} latents": r.absolute}
    scores |= {f"relative, {n} anchors": score for n, score in r.relative.items()}
    rows = [
        [name, _percent(s.own_mean), *map(_percent, s.stitched), _percent(s.stitched_mean)]
        for name, s in scores.items()
    ]
    choosers = [[name, _percent(s.own_mean), _percent(s.stitched_mean)] for name, s in r.choosers.items()]
    wrong, right = r.decoded_absolute, r.decoded_relative
    return [
        f"Two autoencoders with a classifier learned {r.train} digits from different seeds. A linear head is "
        f"fitted on the latents of one and scored on {r.test} held-out digits seen through the other, with "
        f"no further training. Always guessing the commonest class is right in {_percent(r.chance)}.",
        table(["latents", "own head", "B's latents, A's head", "A's latents, B's head", "stitched, mean"], rows),
        f"The same with {r.chooser_anchors} anchors from each chooser in `vecbank.anchors`:",
        table(["anchors", "own head", "stitched, mean"], choosers),
        f"A decoder of A on B's latents, squared error per pixel (grey levels 0 to 1): absolute "
        f"{wrong.stitched_error:.4f} (on A's own {wrong.own_error:.4f}), relative with {PICTURE_ANCHORS} "
        f"anchors {right.stitched_error:.4f} (own {right.own_error:.4f}).",
    ]


def search_text(r: Search) -> list[str]:
    votes = list(next(iter(r.accuracy.values())))
    accuracy = [[name, *(_percent(by_k[k]) for k in votes)] for name, by_k in r.accuracy.items()]
    recall = [
        [f"{c.metric}, {c.data}", str(c.recall), str(c.same_order), f"{c.tied} of {c.queries}"] for c in r.recalls
    ]
    return [
        f"Each of the {r.count} digits is looked up among all the others (`topk` with `allowed` rows, all but "
        "itself); its nearest neighbours vote for its label. Leave-one-out accuracy:",
        table(["metric, data", *(f"{k} votes" if k > 1 else "1 vote" for k in votes)], accuracy),
        f"The same {NEIGHBOURS} neighbours by brute force in float64 NumPy, equal scores by index:",
        table(["metric, data", "recall", "same rows, same order", "queries cut inside a tie"], recall),
    ]


def codebook_text(r: Codebook) -> list[str]:
    rows = [
        [str(c.size), f"{c.psnr:.2f}", f"{c.bits:.4g}", f"{c.bits_with_codebook:.4g}", str(c.used)] for c in r.coded
    ]
    height, width = r.original.shape[:2]
    return [
        f"scikit-learn's `china.jpg` ({width} x {height}) as {r.patches} patches of {r.patch} x {r.patch} "
        f"pixels; at most {r.iterations} steps of `cluster.kmeans`; rebuilt with "
        "`lookup`. With the codebook: one byte for each of its entries.",
        table(["codes", "PSNR, dB", "bits per pixel", "with the codebook", "codes in use"], rows),
    ]


def speed_text(timings: Sequence[Timing], threads: int) -> list[str]:
    def mib(value: float | None) -> str:
        return "not known" if value is None else f"{value:.0f}"

    rows = [
        [
            t.case,
            t.usual,
            f"{t.ours_ms:.1f}",
            f"{t.usual_ms:.1f}",
            f"{t.usual_ms / t.ours_ms:.2f}",
            mib(t.ours_mib),
            mib(t.usual_mib),
            "" if t.differ is None else f"{t.differ} of {t.queries}",
        ]
        for t in timings
    ]
    head = [
        "float32",
        "against",
        "vecbank, ms",
        "torch, ms",
        "ratio",
        "vecbank, MiB",
        "torch, MiB",
        "rows that differ",
    ]
    return [
        f"Medians, the two interleaved, {threads} threads, prepared `Bank`; ratio over 1: vecbank is faster. "
        "MiB: the most memory held at once beyond the inputs, result included. Rows that differ: queries for "
        "which the two do not give the same indices (torch ranks by rounded float32 scores). `make bench` "
        "measures with more care.",
        table(head, rows),
    ]


def machine_text(seconds: float) -> list[str]:
    facts = info.collect()
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("scikit-learn", "matplotlib"))
    return [
        f"- vecbank {facts['vecbank']}, ISA {facts['isa']} (available: {', '.join(facts['available_isas'])})",
        f"- {facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads, {facts['system']}",
        f"- Python {facts['python']}, torch {facts['torch']}, numpy {facts['numpy']}, {versions}",
        f"- build: {facts['build'].get('compiler', 'unknown')}",
        f"- this demo took {seconds:.0f} s",
    ]


def figures(s: Stitching, f: Search, c: Codebook, timings: Sequence[Timing]) -> dict[str, Any]:
    """The report's numbers for other programs."""
    return {
        "stitching": {
            "chance": s.chance,
            "absolute": {"own": s.absolute.own, "stitched": s.absolute.stitched},
            "relative": {str(n): {"own": r.own, "stitched": r.stitched} for n, r in s.relative.items()},
            "choosers": {name: {"own": r.own, "stitched": r.stitched} for name, r in s.choosers.items()},
            "decoder_error": {
                "absolute": {
                    "own": s.decoded_absolute.own_error,
                    "stitched": s.decoded_absolute.stitched_error,
                },
                "relative": {
                    "own": s.decoded_relative.own_error,
                    "stitched": s.decoded_relative.stitched_error,
                },
            },
        },
        "search": {
            "accuracy": {name: {str(k): v for k, v in by_k.items()} for name, by_k in f.accuracy.items()},
            "recall": [vars(r) for r in f.recalls],
        },
        "codebook": [
            {
                "codes": b.size,
                "psnr": b.psnr,
                "bits": b.bits,
                "bits_with_codebook": b.bits_with_codebook,
                "used": b.used,
            }
            for b in c.coded
        ],
        "speed": [vars(t) for t in timings],
    }


class Report:
    """Collects sections, prints each as it is done, and writes the files at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._parts = ["# vecbank on real data"]

    def section(self, title: str, text: Sequence[str], pictures: Sequence[tuple[str, Path]] = ()) -> None:
        print("\n\n".join([f"\n{title}\n{'-' * len(title)}", *text]))
        shown = [f"![{caption}]({path.name})" for caption, path in pictures]
        self._parts += [f"## {title}", *text, *shown]

    def machine(self, lines: Sequence[str]) -> None:
        print("\n" + "\n".join(lines))
        self._parts += ["## Machine", "\n".join(lines)]

    def write(self, numbers: dict[str, Any]) -> Path:
        (self.folder / "figures.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        path = self.folder / "report.md"
        path.write_text("\n\n".join(self._parts) + "\n", encoding="utf-8")
        return path
