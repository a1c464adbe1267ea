"""The gallery as one HTML file: figures, pictures and code are inside it, and it loads nothing."""

from __future__ import annotations

import base64
import inspect
import io
import keyword
import re
import struct
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ._sheet import Check, Drawn, Result, Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What matplotlib takes while a system draws. The colours are those of Okabe and Ito: colour-blind readers tell them
# apart, and so do greys in print.
STYLE: Any = {
    "figure.autolayout": True,  # and not constrained: a system may call tight_layout itself, without a warning
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.prop_cycle": "cycler('color', ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000'])",
}
_TOKENS = re.compile(
    r"""(?P<string>(?s:\"{3}.*?\"{3})|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|(?P<comment>\#[^\n]*)"""
    rf"|(?P<ours>\bvecbank(?:\.\w+)+)|(?P<keyword>\b(?:{'|'.join(keyword.kwlist)})\b)"
)
_PIXELS = 100  # of the page, for an inch of a picture
_SHARP = 2  # pixels of a picture for one of the page, so that it is sharp on a phone


def draw(caption: str, plot: Figure) -> Drawn:
    """The picture as PNG; the margins are cut so that no label is."""
    file = io.BytesIO()
    metadata = {"Software": None}  # equal figures give equal bytes
    plot.savefig(file, format="png", dpi=_PIXELS * _SHARP, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    png = file.getvalue()
    width, height = struct.unpack(">II", png[16:24])  # PNG: the header comes first
    return Drawn(caption, png, width // _SHARP, height // _SHARP)


def summary(results: Sequence[Result]) -> str:
    """All of them in a line."""
    total, held = sum(len(r.sheet.checks) for r in results), sum(r.held for r in results)
    parts = [f"{_count(len(results), 'system')}, {_count(total, 'figure')}: {_verdict(held, total)}"]
    if failed := sum(bool(r.problem) for r in results):
        parts.append(f"{_count(failed, 'system')} failed")
    return ", ".join(parts)


def page(results: Sequence[Result], seed: int) -> str:
    """The whole file."""
    sections = "\n".join(map(_section, results))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Gallery of vecbank</title>
<link rel="icon" href="data:,">
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>Gallery of vecbank</h1>
<p class="lead">Each section is a published system whose core computation is one verb of vecbank, written as a user
would write it. Each figure that it reached in this run stands beside a reference, and a word says whether it holds.</p>
<p class="muted">{escape(summary(results))}. vecbank {escape(__version__)}, seed {seed}.</p>
</header>
<main>
{_overview(results)}
{sections}
</main>
</body>
</html>
"""


def _overview(results: Sequence[Result]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row"><a href="#{r.system.name}">{escape(r.system.title)}</a></th>'
        f"<td>{escape(r.system.family)}</td><td>{_score(r)}</td>"
        f'<td class="number">{r.seconds:.1f}</td></tr>'
        for r in results
    )
    return f"""<section id="systems" aria-label="Systems">
<div class="scroll" role="region" aria-label="All systems" tabindex="0">
<table class="overview">
<thead><tr><th scope="col">System</th><th scope="col">Family</th><th scope="col">Figures that hold</th>
<th scope="col" class="number">Seconds</th></tr></thead>
<tbody>
{rows}
</tbody></table></div>
</section>"""


def _score(result: Result) -> str:
    total = len(result.sheet.checks)
    if result.problem:
        return _mark(False, "failed")
    return _mark(0 < total == result.held, f"{result.held} of {total}")


def _section(result: Result) -> str:
    system, sheet = result.system, result.sheet
    parts = [
        f'<section id="{system.name}" class="system" aria-labelledby="{system.name}-title">',
        f'<p class="family">{escape(system.family)}</p>',
        f'<h2 id="{system.name}-title">{escape(system.title)}</h2>',
        _about(system.about, system.title),
        f'<p class="problem"><strong>Failed.</strong> {escape(result.problem)}</p>' if result.problem else "",
        _figures(sheet.checks, system.title) if sheet.checks else "",
        *(f'<p class="note">{_prose(note)}</p>' for note in sheet.notes),
        '<div class="pictures">' if result.drawn else "",
        *(_picture(drawn, system.title) for drawn in result.drawn),
        "</div>" if result.drawn else "",
        _source(result),
        '<p class="back"><a href="#systems">All systems</a></p>',
        "</section>",
    ]
    return "\n".join(part for part in parts if part)


def _about(text: str, title: str) -> str:
    """The docstring: what the system does, its paper, then formulas (what is indented) and words."""
    shown: list[str] = []
    for i, paragraph in enumerate(part for part in text.split("\n\n") if part.strip()):
        if paragraph.startswith(" "):
            shown.append(f'<pre class="formula" tabindex="0">{escape(inspect.cleandoc(paragraph))}</pre>')
            continue
        words = " ".join(paragraph.split())
        head, colon, rest = words.partition(": ")
        if i == 0 and colon and title.casefold().startswith(head.casefold()):  # the heading has said it
            words = rest[:1].upper() + rest[1:]
        kind = ("lead", "paper")[i] if i < 2 else "words"
        shown.append(f'<p class="{kind}">{_prose(words)}</p>')
    return "\n".join(shown)


def _figures(checks: Sequence[Check], title: str) -> str:
    # The roles say what the elements are: on a phone the rows become blocks, and browsers then forget the table.
    rows: list[str] = []
    for c in checks:
        word = _mark(c.holds, "holds" if c.holds else "does not hold")
        why = f'<p class="why">{_prose(c.why)}</p>' if c.why and not c.holds else ""
        rows.append(
            f'<tr role="row"><th role="rowheader" scope="row">{_prose(c.what)}{why}</th>'
            f'<td role="cell" data-label="Reached">{escape(c.reached)}</td>'
            f'<td role="cell" data-label="Reference">{escape(c.reference)}</td><td role="cell">{word}</td></tr>'
        )
    body = "\n".join(rows)
    return f"""<div class="scroll" role="region" aria-label="Figures of {escape(title)}" tabindex="0">
<table class="figures" role="table">
<thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">Figure</th>
<th role="columnheader" scope="col">Reached</th><th role="columnheader" scope="col">Reference</th>
<th role="columnheader" scope="col">Holds</th></tr></thead>
<tbody role="rowgroup">
{body}
</tbody></table></div>"""


def _picture(drawn: Drawn, title: str) -> str:
    data = base64.b64encode(drawn.png).decode()
    return (
        f'<figure style="max-width:{drawn.width}px"><img src="data:image/png;base64,{data}" width="{drawn.width}" '
        f'height="{drawn.height}" alt="{escape(f"{title}: {drawn.caption}")}">'
        f"<figcaption>{_prose(drawn.caption)}</figcaption></figure>"
    )


def _source(result: Result) -> str:
    code = _code(result.system.run) if result.system.run else ""
    if not code:
        return ""
    return (
        f"<details><summary>The code of this system ({_count(code.count(chr(10)) + 1, 'line')})</summary>\n"
        f'<pre class="code" tabindex="0"><code>{_coloured(code)}</code></pre></details>'
    )


def _code(run: Callable[[Sheet], None]) -> str:
    """`run`, with the constants and functions before it in its file: the computation may be one of those."""
    try:
        own = inspect.getsource(run)
        before, _, _ = inspect.getsource(inspect.getmodule(run) or run).partition(own)
    except OSError:  # installed without its sources
        return ""
    _, found, helpers = before.partition("\nFAMILY = ")
    code = helpers.partition("\n")[2] + own if found else own
    return code.strip().replace("\n\n\n", "\n\n")


def _coloured(source: str) -> str:
    """Python with its comments dimmed, its keywords coloured, and what it calls of vecbank set off."""
    shown, end = [], 0
    for found in _TOKENS.finditer(source):
        word = escape(found.group())
        shown += [escape(source[end : found.start()]), f'<span class="{found.lastgroup}">{word}</span>']
        end = found.end()
    return "".join([*shown, escape(source[end:])])


def _prose(text: str) -> str:
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escape(text))


def _mark(good: bool, word: str) -> str:
    return f'<span class="mark {"good" if good else "bad"}">{escape(word)}</span>'


def _verdict(held: int, total: int) -> str:
    if held == total:
        return "all hold"
    return f"{held} hold, {total - held} {'does' if total - held == 1 else 'do'} not"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


_CSS = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --card: #f5f6f8; --text: #1b1f24; --muted: #59616c; --line: #d8dce2; --link: #0b5aa8;
  --good: #12613a; --good-ground: #e2f3e9; --bad: #96290f; --bad-ground: #fce8e2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --card: #1d2126; --text: #e5e8eb; --muted: #a4acb7; --line: #343a43; --link: #82b9ff;
    --good: #8adba9; --good-ground: #16331f; --bad: #ffb39c; --bad-ground: #43211a;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 66rem; background: var(--ground); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
}
h1 { margin: 0 0 .75rem; font-size: 2rem; line-height: 1.2; letter-spacing: -.015em; }
h2 { margin: 0 0 .5rem; font-size: 1.4rem; line-height: 1.25; letter-spacing: -.01em; text-wrap: balance; }
p { margin: 0 0 .75rem; max-width: 44rem; text-wrap: pretty; overflow-wrap: break-word; }
a { color: var(--link); text-underline-offset: .15em; text-decoration-thickness: 1px; }
a:hover { text-decoration-thickness: 2px; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
p code, th code, figcaption code { font-size: .9em; }
.lead { font-size: 1.0625rem; }
.muted, .paper, .note, .back, figcaption { color: var(--muted); }
.paper, .note, figcaption, .why { font-size: .9rem; }
.system { margin-top: 3rem; padding-top: 2rem; border-top: 1px solid var(--line); }
.family { margin: 0 0 .25rem; color: var(--muted); font-size: .875rem; }
.scroll { margin: 1.25rem 0; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .9375rem; line-height: 1.4; }
th, td { padding: .5rem 1rem .5rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-size: .8125rem; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.figures td { font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
.figures { table-layout: fixed; }
.figures thead th { width: 40%; }
.figures thead th:nth-child(2) { width: 20%; }
.figures thead th:nth-child(3) { width: 27%; }
.figures thead th:last-child { width: 13%; }
.overview td:nth-child(3), .figures td:last-child { white-space: nowrap; }
.mark { display: inline-block; padding: .05rem .5rem; border-radius: .25rem; font-size: .875rem; }
.good { color: var(--good); background: var(--good-ground); }
.bad { color: var(--bad); background: var(--bad-ground); font-weight: 600; }
.why { margin: .35rem 0 0; color: var(--bad); }
.problem { padding: .75rem 1rem; border-radius: .375rem; color: var(--bad); background: var(--bad-ground); }
pre { margin: 1rem 0; padding: .875rem 1rem; overflow-x: auto; border-radius: .375rem; background: var(--card); }
.formula { font-size: .875rem; line-height: 1.5; }
.code { font-size: .8rem; line-height: 1.5; tab-size: 4; }
.comment { color: var(--muted); }
.keyword { color: var(--link); }
.ours { font-weight: 700; color: var(--good); }
.pictures { display: flex; flex-wrap: wrap; gap: 1.25rem 1.5rem; margin: 1.5rem 0; align-items: flex-start; }
figure { margin: 0; min-width: 0; }
img { display: block; max-width: 100%; height: auto; border-radius: .375rem; background: #ffffff; }
figcaption { margin-top: .5rem; line-height: 1.4; }
summary { padding: .25rem 0; color: var(--link); cursor: pointer; width: fit-content; }
.back { margin: 1rem 0 0; font-size: .875rem; }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.65rem; }
  h2 { font-size: 1.25rem; }
  th, td { padding-right: .75rem; }
  table { font-size: .875rem; }
  thead th { white-space: normal; }
  .formula { white-space: pre-wrap; overflow-wrap: break-word; }
  .figures thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .figures tr {
    display: grid; grid-template-columns: 1fr 1fr auto; gap: .25rem .75rem; padding: .75rem 0;
    border-bottom: 1px solid var(--line);
  }
  .figures tbody, .figures { display: block; }
  .figures tbody th, .figures td { display: block; width: auto; min-width: 0; padding: 0; border: 0; }
  .figures tbody th { grid-column: 1 / -1; font-size: .9375rem; }
  .figures td:last-child { align-self: end; }
  .figures td[data-label]::before {
    content: attr(data-label); display: block; color: var(--muted); font-size: .8125rem;
  }
}
@media print {
  .back, summary { display: none; }
}
"""
