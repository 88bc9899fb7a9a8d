"""Write the state machine of a slot into docs/architecture.md, and draw it: `python -m scripts.architecture_docs`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vit_api.ipc import slots
from vit_api.ipc.slots import TRANSITIONS, SlotState

_ROOT = Path(__file__).resolve().parent.parent
PAGE = _ROOT / "docs" / "architecture.md"
PICTURE = _ROOT / "docs" / "slot-states.svg"

_START, _END = "<!-- slot states -->\n", "<!-- end -->"
_ROW = re.compile(r"^    ([A-Z]+) +([a-z]+) +([a-z]+) +([A-Z]+)(?: +(.+))?$", re.MULTILINE)
_WIDTH, _HEIGHT, _STEP, _BOX = 900, 300, 180, (110, 40)
_MIDDLE = 150
_STYLE = """
    .ground { fill: #ffffff; } .state { fill: #f3f5f9; stroke: #4a5bb5; } text { fill: #1c2330; }
    .small { font-size: 12px; fill: #4b5563; }
    .way { fill: none; stroke: #4a5bb5; stroke-width: 1.6; marker-end: url(#tip); } .tip { fill: #4a5bb5; }
    @media (prefers-color-scheme: dark) {
      .ground { fill: #0f131a; } .state { fill: #1a202b; stroke: #8fa0ff; } text { fill: #e6eaf2; }
      .small { fill: #aab4c4; } .way { stroke: #8fa0ff; } .tip { fill: #8fa0ff; }
    }
  """
_MARKER = (
    '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="tip" d="M0 0 10 5 0 10z"/></marker>'
)


class Step(NamedTuple):
    """A transition of a slot, as the docstring of `slots` describes it."""

    before: str
    name: str
    by: str
    after: str
    why: str


def steps() -> list[Step]:
    """Return the transitions.

    Raises:
        ValueError: The docstring of `slots` and `TRANSITIONS` disagree.
    """
    found = [Step(*match.groups(default="")) for match in _ROW.finditer(slots.__doc__ or "")]
    allowed = {(before.name, after.name) for before, afters in TRANSITIONS.items() for after in afters}
    if {(step.before, step.after) for step in found} != allowed:
        raise ValueError("The docstring of vit_api/ipc/slots.py and TRANSITIONS disagree.")
    return found


def table() -> str:
    """Return the transitions as a table in Markdown."""
    rows = [f"| {s.before} | {s.name} | {s.by} | {s.after} | {s.why} |" for s in steps()]
    return "\n".join(["| from | step | by | to | when |", "|---|---|---|---|---|", *rows]) + "\n"


def picture() -> str:
    """Return the state machine as an SVG: steps forward above the states, steps back below."""
    places = {state.name: _STEP * number + _STEP // 2 for number, state in enumerate(SlotState)}
    width, height = _BOX
    parts = [f'<rect class="ground" width="{_WIDTH}" height="{_HEIGHT}"/>']
    for name, x in places.items():
        corner = f'x="{x - width // 2}" y="{_MIDDLE - height // 2}"'
        parts.append(f'<rect class="state" {corner} width="{width}" height="{height}" rx="8"/>')
        parts.append(f'<text x="{x}" y="{_MIDDLE + 5}" text-anchor="middle">{name}</text>')
    parts += [_arrow(step, places) for step in steps()]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="title"'
    )
    title = '<title id="title">The states of a slot</title>'
    body = "\n  ".join([title, f"<style>{_STYLE}</style>", f"<defs>{_MARKER}</defs>", *parts])
    return f'{head} font-family="system-ui, sans-serif" font-size="14">\n  {body}\n</svg>\n'


def _arrow(step: Step, places: dict[str, int]) -> str:
    start, end = places[step.before], places[step.after]
    is_forward = end > start
    edge = _MIDDLE + (-1 if is_forward else 1) * _BOX[1] // 2
    depth = 20 + abs(end - start) // 8
    bend = edge + (-1 if is_forward else 1) * depth * 2
    side = 20 if is_forward else -20
    end -= side * (abs(end - start) // _STEP - 1) // 2  # arrows from further away end further out
    label_y = (edge + bend) // 2 + (-4 if is_forward else 14)
    curve = f'<path class="way" d="M{start + side} {edge} Q{(start + end) // 2} {bend} {end - side} {edge}"/>'
    return f'{curve}<text class="small" x="{(start + end) // 2}" y="{label_y}" text-anchor="middle">{step.name}</text>'


def updated() -> dict[Path, str]:
    """Return the text that each file should have."""
    text = PAGE.read_text()
    start, end = text.index(_START) + len(_START), text.index(_END, text.index(_START))
    return {PAGE: text[:start] + table() + text[end:], PICTURE: picture()}


if __name__ == "__main__":
    for path, content in updated().items():
        path.write_text(content)
