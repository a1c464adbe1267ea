"""`python -m vecbank demo`: the three families on real data, with figures, pictures and a report.

Only the standard library is imported here, so that a missing package is named instead of a traceback shown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .._needed import missing

# module -> what pip calls it
_NEEDED = {
    "numpy": "numpy",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "tqdm": "tqdm",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 0, or 1 when a package is missing or the folder cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m vecbank demo", description="Stitching, search and a codebook on real data."
    )
    parser.add_argument("--out", type=Path, default=Path("demo_report"), metavar="DIR", help="folder for the report")
    parser.add_argument("--seed", type=int, default=0, help="of the networks, the split and k-means")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer steps: a check in seconds")
    options = parser.parse_args(argv)
    if absent := missing(_NEEDED):
        print(f"vecbank demo: missing {', '.join(absent)}: pip install {' '.join(absent)}", file=sys.stderr)
        return 1
    if options.seed < 0:
        print(f"vecbank demo: --seed: expected 0 or more, got {options.seed}", file=sys.stderr)
        return 1
    try:
        return _run(options.out, options.seed, options.quick)
    except OSError as problem:
        print(f"vecbank demo: {problem}", file=sys.stderr)
        return 1


def _run(folder: Path, seed: int, quick: bool) -> int:
    import torch

    from . import codebook, data, pictures, report, search, speed, stitching

    start = time.perf_counter()
    out = report.Report(folder)
    digits = data.load_digits()

    stitched = stitching.run(digits, seed, quick)
    out.section(
        "Stitching: a head of one network on the latents of another",
        report.stitching_text(stitched),
        [
            ("accuracy by number of anchors", pictures.stitching_bars(stitched, folder / "stitching.png")),
            ("decoded digits", pictures.stitching_digits(stitched, folder / "stitching_digits.png")),
        ],
    )
    found = search.run(digits, quick)
    out.section(
        "Search: nearest neighbours among handwritten digits",
        report.search_text(found),
        [("queries and their neighbours", pictures.search_grid(found, folder / "search.png"))],
    )
    coded = codebook.run(data.load_photograph(), seed, quick)
    out.section(
        "Codebook: a photograph in code numbers",
        report.codebook_text(coded),
        [
            ("original and rebuilt", pictures.codebook_pictures(coded, folder / "codebook.png")),
            ("rate and distortion", pictures.codebook_curve(coded, folder / "codebook_curve.png")),
        ],
    )
    timings = speed.run(quick)
    out.section("Speed: against what one writes in torch", report.speed_text(timings, torch.get_num_threads()))
    out.machine(report.machine_text(time.perf_counter() - start))
    written = out.write(report.figures(stitched, found, coded, timings))
    print(f"\nreport: {written} ({len(list(folder.glob('*.png')))} pictures beside it)")
    return 0
