"""What a system of the gallery shows: figures beside those that it is held against, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Plot
    from torch import Tensor

FEW_TICKS = 12  # rows or columns of a heat map that all get their number


@dataclass(frozen=True)
class Check:
    """One figure: what was reached, what it is held against, and whether it holds."""

    what: str
    reached: str
    reference: str
    holds: bool
    why: str = ""  # where it does not hold: what was reached instead, and why


@dataclass
class Sheet:
    """A system's results, in the order in which its `run` gives them."""

    seed: int = 0
    checks: list[Check] = field(default_factory=list)
    pictures: list[tuple[str, Plot]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self, what: str, reached: object, reference: object, holds: bool, why: str = "") -> None:  # noqa: FBT001
        """Show a figure. `reference`: the figure of the reference, or in words what must be; `holds`: computed, never
        a constant. `why`: the reason to print where it does not hold.
        """
        self.checks.append(Check(what, _text(reached), _text(reference), bool(holds), why))

    def picture(self, caption: str, plot: Plot) -> None:
        """Show a matplotlib figure."""
        self.pictures.append((caption, plot))

    def heat_map(
        self,
        caption: str,
        values: Tensor,
        across: str,
        down: str,
        *,
        span: tuple[float, float] | None = (0, 1),
        ticks: Sequence[str] = (),
        label: str = "",
    ) -> None:
        """Show a matrix (rows, columns) as colours, from the first of `span` to the second (None: the least and the
        greatest value). `across`, `down`: what columns and rows are; `ticks`: their names, in place of numbers.
        """
        from matplotlib.figure import Figure

        plot = Figure(figsize=(4, 3), layout="constrained")
        axes = plot.subplots()
        least, most = span or (None, None)
        plot.colorbar(axes.imshow(values.numpy(), vmin=least, vmax=most), label=label)
        axes.set(xlabel=across, ylabel=down)
        for axis, count in ((axes.yaxis, values.shape[0]), (axes.xaxis, values.shape[1])):
            if ticks or count <= FEW_TICKS:
                axis.set_ticks(range(count), ticks or None)
        self.picture(caption, plot)

    def lines(
        self, caption: str, across: str, down: str, x: Sequence[float], lines: Mapping[str, Sequence[float] | Tensor]
    ) -> None:
        """Show lines over x, by their names. `across`, `down`: what x and the values are."""
        from matplotlib.figure import Figure

        axes = (plot := Figure(figsize=(4.5, 3), layout="constrained")).subplots()
        for name, values in lines.items():
            axes.plot(x, values, label=name)
        axes.set(xlabel=across, ylabel=down)
        if len(lines) > 1:
            axes.legend()
        self.picture(caption, plot)

    def images(self, caption: str, images: Tensor, across: Sequence[str] = (), down: Sequence[str] = ()) -> None:
        """Show grey images (rows, columns, height, width), each from its least value to its greatest. `across`, `down`:
        what columns and rows are.
        """
        from matplotlib.figure import Figure

        rows, columns = images.shape[:2]
        plot = Figure(figsize=(0.9 * columns, 0.9 * rows), layout="constrained")
        for i, j in ((i, j) for i in range(rows) for j in range(columns)):
            axes = plot.add_subplot(rows, columns, 1 + i * columns + j)
            axes.imshow(images[i, j].numpy(), cmap="gray")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color="0.8")
            axes.set_title(across[j] if across and i == 0 else "")
            axes.set_ylabel(down[i] if down and j == 0 else "")
        self.picture(caption, plot)

    def note(self, text: str) -> None:
        """A sentence below the figures."""
        self.notes.append(text)


@dataclass(frozen=True)
class System:
    """A file of the gallery."""

    name: str  # of the file, without its ending
    title: str
    family: str
    about: str  # its docstring
    run: Callable[[Sheet], None] | None
    problem: str = ""  # why there is nothing to run


class Drawn(NamedTuple):
    """A picture as the page shows it."""

    caption: str
    png: bytes
    width: int  # in pixels of the page: the picture has twice as many
    height: int


@dataclass
class Result:
    """What one run of a system gave."""

    system: System
    sheet: Sheet
    seconds: float = 0.0
    drawn: list[Drawn] = field(default_factory=list)
    problem: str = ""  # what it raised

    @property
    def held(self) -> int:
        return sum(check.holds for check in self.sheet.checks)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if value and abs(value) < 1e-2 else f"{value:.3f}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(v) for v in value)
    return str(value)
