#!/usr/bin/env python3
"""JSON of a bench run -> a markdown table and plots beside it: `python bench/report.py RESULT.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OURS = "vecbank"
Row = dict[str, Any]


def verdict(row: Row) -> str:
    return {True: "met", False: "**missed**", None: "not judged"}[row["met"]]


def table(header: list[str], lines: Iterable[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def seconds(s: float) -> str:
    return f"{s:.2f} s" if s >= 1 else f"{s * 1e3:.3g} ms" if s >= 1e-3 else f"{s * 1e6:.3g} µs"


def answers(check: Row | None) -> str:
    """How the sampled answers compare with the float64 reference."""
    if check is None or check["ok"] is None:
        return "-"
    if "wrong_rows" in check:
        return f"{check['wrong_rows']} of {check['sample']}"
    worst = max(e / a for e, a in zip(check["largest_error"], check["allowed_error"], strict=True))
    return f"{worst:.2f} of allowed"


def section(report: Row, name: str) -> list[Row]:
    return [row for row in report["rows"] if row["section"] == name]


def named(machine: Row) -> str:
    return "{} (family {}, model {})".format(machine["cpu"], *machine["cpu_family_model"])


def committed(report: Row) -> str:
    """The commit that was measured, and when."""
    dirty = {True: " with uncommitted changes", False: "", None: " (no git)"}[report["dirty"]]
    return f"commit {(report['commit'] or 'none')[:12]}{dirty}, {report['date'][:10]}"


def opening(title: str, command: str, about: Row) -> list[str]:
    """The first lines of a page on one question, whose machine and software stand in one dict."""
    return [
        f"# {title}",
        "",
        f"Written by `python -m {command}`; do not edit.",
        "",
        f"- Machine: {named(about)}, {about['cores_allowed']} cores; instruction set **{about['isa']}**, "
        f"{committed(about)}",
    ]


def head(report: Row) -> str:
    machine, soft, parameters = report["machine"], report["software"], report["parameters"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches_of_cpu0"].items())
    peers = ", ".join(f"{name} {version or 'missing'}" for name, version in soft["peers"].items())
    lines = [
        f"- Machine: {named(machine)}, {machine['cores']} cores, {caches}, "
        f"{machine['memory_gib']} GiB; load average at start {machine['load_average_at_start'][0]}",
        f"- vecbank {soft['vecbank']}, ISA in use **{soft['isa']}** "
        f"(available: {', '.join(soft['isas_available'])}), {committed(report)}",
        f"- torch {soft['torch']} ({soft['torch_blas']}, {soft['torch_cpu_capability']}), "
        f"Python {soft['python']}, "
        f"{soft['threads']} threads for everybody; peers: {peers}",
        f"- Medians of up to {parameters['repeats']} interleaved samples (fewer for long calls)",
    ]
    if gpu := report.get("gpu"):
        rates = ", ".join(f"{name} {rate:.3g}" for name, rate in gpu["tflop_per_s"].items())
        lines += [
            f"- GPU: **{gpu['name']}**, compute capability {gpu['capability']}, {gpu['memory_gib']} GiB; CUDA "
            f"{gpu['torch_cuda']}, kernels built for {gpu['kernels_for']}",
            f"- A large product in this run, TFLOP/s: {rates}; a large copy {gpu['copy_tbyte_per_s']:.3g} TB/s",
            "- Times are between two events around a call, after L2 was written over",
        ]
        lines += [f"- **Failed:** {failure}" for failure in report["failures"]]
        if report["left_out"]:
            lines.append(f"- **Not run, for want of time:** {'; '.join(report['left_out'])}")
    else:
        lines += [f"- **Not run:** {what}" for what in report.get("left_out", [])]
    hashes = {row["data_sha256"] for row in report["rows"] if row.get("data_sha256")}
    lines += [f"- Docstrings: those of the list with SHA-256 {text[:16]}" for text in sorted(hashes)]
    if parameters["quick"]:
        lines.append("- **Quick run: sizes are reduced and targets are not judged.**")
    busy = [row["others_busy"] for row in report["rows"] if row.get("others_busy") is not None]
    if busy:
        lines.append(
            f"- Other processes took up to {100 * max(busy):.0f} % of the machine during a row "
            f"(median {100 * sorted(busy)[len(busy) // 2]:.0f} %)"
        )
    return "\n".join(lines)


def speed_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        base, ours = row["baseline"], row["candidates"][OURS]
        best = base["candidates"][base["fastest"]]["median_s"]
        rate = (
            f"{base['gflop_per_s']:.0f} GF/s" if base["gflop_per_s"] is not None else f"{base['gbyte_per_s']:.0f} GB/s"
        )
        unit = "read" if base["kind"] == "read" else "sgemm"
        name = row["name"] + (" †" if (row.get("others_busy") or 0) > 0.1 else "")
        lines.append(
            [
                name,
                f"{seconds(best)} ({rate})",
                seconds(ours["median_s"]),
                f"**{ours['ratio']:.2f}** x {unit}",
                f"{ours['ratio_of_minima']:.2f}",
                row["target_text"],
                verdict(row),
                answers(ours["check"]),
            ]
        )
    header = ["case", "baseline", "vecbank", "ratio", "of minima", "target", "", "wrong rows / error"]
    note = "" if not any("†" in line[0] for line in lines) else "\n\n† other processes used over 10 % of the machine."
    return table(header, lines) + note


def cuda_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        base, ours = row["baseline"], row["candidates"][OURS]
        best = base["candidates"][base["fastest"]]["median_s"]
        rate = (
            f"{base['gflop_per_s'] / 1e3:.3g} TFLOP/s"
            if base["gflop_per_s"] is not None
            else f"{base['gbyte_per_s']:.0f} GB/s"
        )
        paths = [
            f"{name.removeprefix(OURS + ' ')} {seconds(row['candidates'][name]['median_s'])} ({verdict({'met': met})})"
            for name, met in row["paths"].items()
        ]
        absent = f" (without {', '.join(row['absent'])})" if row["met"] is None and row["absent"] else ""
        kernels = f", {ours['kernels']} main kernels" if ours.get("kernels") else ""
        lines.append(
            [
                row["name"],
                f"{seconds(best)} ({rate})",
                f"**{seconds(ours['median_s'])}**{kernels}",
                "-" if row.get("predicted_ms") is None else seconds(row["predicted_ms"] / 1e3),
                f"{ours['ratio']:.2f}",
                f"{ours['tflop_per_s']:.3g} ({100 * row['share_of_large_product']:.0f} %)",
                row["target_text"],
                verdict(row) + absent,
                "; ".join(paths) or "-",
                answers(ours["check"]),
            ]
        )
    header = ["case", "product or read", "vecbank", "predicted", "x that", "TFLOP/s (of a large product)"]
    return table([*header, "target", "", "other paths of ours", "wrong rows / error"], lines)


def peers_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        for name, entry in row["candidates"].items():
            if entry["status"] != "ok":
                why = f" ({entry['reason'][:80]})" if entry["status"] in ("failed", "not run") else ""
                lines.append([row["name"], name, entry["status"] + why, "-", "-", "-"])
                continue
            against = row["against_peers"].get(name)
            factor = "-" if against is None else f"{1 / against['ours_over_peer']:.2f} x"
            few = f" ({len(entry['samples_s'])} samples)" if entry["fewer_repeats_because_slow"] else ""
            bold = "**" if name == OURS else ""
            lines.append(
                [
                    row["name"],
                    f"{bold}{name}{bold}",
                    seconds(entry["median_s"]) + few,
                    f"{entry['ratio']:.2f}",
                    factor,
                    answers(entry["check"]),
                ]
            )
    return table(["case", "candidate", "median", "x baseline", "vecbank is faster by", "wrong rows / error"], lines)


def memory_table(rows: list[Row]) -> str:
    def cell(found: Row) -> str:
        return f"{found['extra_mib']:.1f}" if "extra_mib" in found else found["error"][:60]

    lines = []
    for row in rows:
        others = "; ".join(f"{name} {cell(found)}" for name, found in row["candidates"].items() if name != OURS)
        ours = row["candidates"][OURS]
        lines.append([row["name"], cell(ours), f"≤ {row['target']['limit']:.0f}", verdict(row), others])
    return table(["case", "vecbank, MiB", "target", "", "peers, MiB"], lines)


def growth_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        cells = [f"{row['ratios'][axis]:.2f}" if axis in row["ratios"] else "-" for axis in "nmd"]
        lines.append([row["name"], *cells, f"≤ {row['target']['limit']}", verdict(row)])
    return table(["time after doubling", "N", "M", "d", "target", ""], lines)


def overhead_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        bank, plain = (entry["median_s"] for entry in row["candidates"].values())
        limit = f"≤ {row['target']['limit']:.2f}"
        name = f"{row['op']} {row['n']} x {row['m']:,}, d {row['d']}" + (f", k {row['k']}" if row["k"] > 1 else "")
        lines.append([name, seconds(bank), seconds(plain), f"{row['ratio']:.2f}", limit, verdict(row)])
    return table(["case", "Bank", "plain tensor", "ratio", "target", ""], lines)


def tiny_table(rows: list[Row]) -> str:
    ops = list(dict.fromkeys(row["op"] for row in rows))
    lines = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        cells = []
        found = {row["op"]: row for row in rows if row["mode"] == mode}
        for op in ops:
            us = found[op]["microseconds"]
            peer = us.get("torch expression")
            mark = " **missed**" if found[op]["met"] is False else ""
            cells.append(f"{us[OURS]:.1f}" + (f" ({peer:.1f})" if peer else "") + mark)
        limit = next(iter(found.values()))["target"]["limit"]
        lines.append([mode, f"≤ {limit:.0f}", *cells])
    return table(["µs a call (torch expression)", "target", *ops], lines)


TABLES = (
    (
        "cuda",
        "On the GPU",
        cuda_table,
        "The default path is judged; other paths of ours ran in the same rounds.",
    ),
    (
        "speed",
        "Speed",
        speed_table,
        "Ratio: our median time over the baseline's, then fastest sample over fastest; smaller is better.",
    ),
    (
        "codebooks",
        "Codebooks and sparse dictionaries",
        speed_table,
        "Ratio: to one plain product per stage or iteration (training: forward, backward and the codebook's update).",
    ),
    (
        "memory",
        "Extra memory",
        memory_table,
        "Peak growth of a call beyond inputs, outputs and the Bank: resident on a CPU, torch's allocator on a GPU.",
    ),
    ("growth", "Growth", growth_table, "Time at the full size over time with N, M or d halved."),
    ("overhead", "A plain tensor instead of a Bank", overhead_table, "The bank is packed inside the call."),
    ("tiny", "Tiny inputs", tiny_table, "One query, bank 64 x 16, one call of a Bank method (topk: k 4)."),
    (
        "speed",
        "Every candidate",
        peers_table,
        "The same run as the first table; peers are prepared beforehand.",
    ),
    ("codebooks", "Every candidate, codebooks", peers_table, "The same run."),
    ("cuda", "Every candidate on the GPU", peers_table, "The same run."),
)


def markdown(report: Row, plots: list[Path]) -> str:
    judged = [row["met"] for row in report["rows"] if row["met"] is not None]
    parts = [
        f"# Bench on the {report['parameters']['device'].upper()}",
        "Written by `python bench/run.py`; do not edit.",
        head(report),
        f"**{sum(judged)} of {len(judged)} rows met.**",
    ]
    parts += [f"![{path.stem}]({path.name})" for path in plots]
    for name, title, render, note in TABLES:
        rows = section(report, name)
        if rows:
            parts += [f"## {title}", note, render(rows)]
    return "\n\n".join(parts) + "\n"


def write(path: Path) -> str:
    """Writes the table and plots of `path` beside it and returns the table."""
    report = json.loads(path.read_text())
    plots: list[Path] = []
    try:
        from bench.plots import draw
    except ImportError as error:
        print(f"no plots: {error}", file=sys.stderr)
    else:
        plots = draw(report, path)
    text = markdown(report, plots)
    path.with_suffix(".md").write_text(text)
    return text


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    print(write(Path(sys.argv[1])))
