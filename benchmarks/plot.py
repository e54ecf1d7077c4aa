"""The figures as bars, in an SVG file that needs no library to be drawn or shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.contenders import Contender
from benchmarks.contenders import CONTENDERS
from benchmarks.run import number
from benchmarks.run import Run


@dataclass(frozen=True)
class Panel:
    """One figure of all contenders."""

    figure: str
    title: str


PANELS = (
    Panel("enqueue", "enqueue one by one, tasks/s (more is better)"),
    Panel("enqueue_many", "enqueue many in one call, tasks/s (more is better)"),
    Panel("drain", "drain, tasks/s (more is better)"),
    Panel("result_p50", "from the call to the result at rest, ms (less is better)"),
)

_WIDTH = 760
_LABELS = 250
_VALUES = 70
_ROW = 20
_BAR = 13
_TITLE = 34
_FOOT = 24
_MARGIN = 12
#: Ours, what is possible, and the others: told apart without colours too, by their names.
_COLOURS = {"celeriac": "#2f7d32", "limit": "#b9b9b9"}
_OTHERS = "#33608f"
#: How much of the colour is left, by the beginning of what survives.
_SHADES = {"power loss": 1.0, "process death": 0.7, "nothing": 0.4}
_LEGEND = (
    "Medians, least to greatest; logarithmic. "
    "Darker survives more: loss of power, death of a process, nothing."
)
_STYLE = (
    "text{font:12px sans-serif;fill:#222}.title{font-weight:bold}"
    ".legend{font-size:10.5px}.background{fill:#fff}.range{stroke:#222;stroke-width:1}"
)


def svg(run: Run) -> str:
    """Return the drawing: medians as bars, least to greatest as a line on each, scales of ten."""
    parts: list[str] = []
    top = _MARGIN
    for panel in PANELS:
        if contenders := [each for each in CONTENDERS if run.values(each.name, panel.figure)]:
            parts += _panel(run, panel, contenders, top)
            top += _TITLE + _ROW * len(contenders)
    height = top + _FOOT + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
            f'width="{_WIDTH}" height="{height}" role="img">',
            "<title>Celeriac beside its peers</title>",
            f"<style>{_STYLE}</style>",
            f'<rect class="background" width="{_WIDTH}" height="{height}"/>',
            *parts,
            f'<text class="legend" x="{_MARGIN}" y="{top + _FOOT}">{_LEGEND}</text>',
            "</svg>",
            "",
        ]
    )


def _panel(run: Run, panel: Panel, contenders: Sequence[Contender], top: float) -> Iterator[str]:
    values = [value for each in contenders for value in run.values(each.name, panel.figure)]
    scale = _Scale(min(values), max(values))
    yield f'<text class="title" x="{_MARGIN}" y="{top + 20}">{escape(panel.title)}</text>'
    for place, contender in enumerate(contenders):
        yield from _bar(run, panel, contender, top + _TITLE + _ROW * place, scale)


def _bar(run: Run, panel: Panel, contender: Contender, top: float, scale: _Scale) -> Iterator[str]:
    values = run.values(contender.name, panel.figure)
    median = run.median(contender.name, panel.figure)
    assert median is not None
    middle, right = top + _BAR / 2, scale.x(median)
    colour = _COLOURS.get(contender.name.partition("-")[0], _OTHERS)
    shade = next(value for text, value in _SHADES.items() if contender.durability.startswith(text))
    title = escape(contender.title.replace("`", ""))
    yield f'<text x="{_LABELS - 8}" y="{middle + 4}" text-anchor="end">{title}</text>'
    yield (
        f'<rect x="{_LABELS}" y="{top}" width="{right - _LABELS:.1f}" height="{_BAR}" '
        f'fill="{colour}" fill-opacity="{shade}"/>'
    )
    left, end = scale.x(min(values)), scale.x(max(values))
    yield f'<line class="range" x1="{left:.1f}" x2="{end:.1f}" y1="{middle}" y2="{middle}"/>'
    yield f'<text x="{max(right, end) + 6:.1f}" y="{middle + 4}">{number(median)}</text>'


class _Scale:
    """Logarithmic, from a power of ten below everything."""

    def __init__(self, least: float, greatest: float) -> None:
        self._start = math.floor(math.log10(least) - 0.3)
        self._decades = math.log10(greatest) - self._start

    def x(self, value: float) -> float:
        """Return where a value is."""
        share = (math.log10(value) - self._start) / self._decades
        return _LABELS + share * (_WIDTH - _LABELS - _VALUES - _MARGIN)
