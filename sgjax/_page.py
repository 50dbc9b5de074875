"""HTML pieces of a report: numbers as people read them, tables, pictures, the style sheet."""

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

DASH, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


class Cell(NamedTuple):
    """A table cell that is set apart: a second line, or bold."""

    text: str
    note: str = ""
    strong: bool = False


def escape(text: Any) -> str:
    """Any text, safe within HTML."""
    return html.escape(str(text))


def label(name: Any) -> str:
    """A name of the code as words."""
    return str(name).replace("_", " ")


def number(value: Any, digits: int = 3) -> str:
    """A number to some significant digits; a dash where there is none."""
    if not finite(value):
        return DASH
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if not -4 <= exponent < 6:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        power = str(int(power)).translate(_SUPERSCRIPT)
        return f"{mantissa} {TIMES} 10{power}".replace("-", MINUS)
    return f"{value:,.{max(0, digits - 1 - exponent)}f}".replace("-", MINUS)


def rounded(values: Mapping[str, Any], width: Any) -> dict[str, str]:
    """Numbers to the decimals that their spread warrants: its first two digits."""
    if not finite(width) or width <= 0:
        return {name: number(value) for name, value in values.items()}
    decimals = 1 - math.floor(math.log10(width))

    def plain(value: Any) -> str:
        if not finite(value) or abs(value) >= 1e6 or not 0 <= decimals <= 5:
            return number(value)
        return f"{value:,.{decimals}f}".replace("-", MINUS)

    return {name: plain(value) for name, value in values.items()}


def percent(share: Any, decimals: int = 0) -> str:
    """A share in per cent; never 0 or 100 % of something that is only nearly so."""
    if not finite(share):
        return DASH
    least = 10.0**-decimals
    if 0 < share < least / 200:
        return f"< {least:g} %"
    if 1 - least / 200 < share < 1:
        return f"> {100 - least:g} %"
    return f"{100 * share:.{decimals}f} %"


def probability(p: Any) -> str:
    """A p-value."""
    if not finite(p):
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def spread(row: Mapping[str, Any]) -> float | None:
    """The scale that decides decimals: of the shorter tail, since heavy ones inflate an sd."""
    if all(finite(row.get(name)) for name in ("q05", "q50", "q95")):
        tail = min(row["q50"] - row["q05"], row["q95"] - row["q50"])
        if tail > 0:
            return tail / 1.65
    return row.get("sd")


def finite(value: Any) -> bool:
    """Whether something is a usable number."""
    return isinstance(value, int | float) and math.isfinite(value)


def capital(text: str) -> str:
    """The text with a capital first."""
    return text[:1].upper() + text[1:]


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def table(header: Sequence[str], rows: Iterable[Sequence[str | Cell]], caption: str = "") -> str:
    """A table whose first column names the rows; it scrolls by itself where it is too wide."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "".join(
        "<tr>" + "".join(_cell(cell, first=i == 0) for i, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{words}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(figure: Figure, alternative: str, caption: str) -> str:
    """A figure inlined on a white card, with words for those who cannot see it."""
    stream = io.BytesIO()
    # Without a salt and a date, the same analysis gives the same page.
    with matplotlib.rc_context({"svg.hashsalt": "sgjax", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f'<figure><div class="card"><img alt="{escape(alternative)}" '
        f'src="data:image/svg+xml;base64,{data}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what belongs under it; nothing where nothing does."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    attribute = f' class="{kind}"' if kind else ""
    # A number stays on one line with its unit.
    text = text.replace(" %", "\N{NO-BREAK SPACE}%").replace(
        "p = ", "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}"
    )
    return f"<p{attribute}>{escape(text)}</p>"


def details(title: str, body: str) -> str:
    """What is there for those who look for it."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def document(title: str, body: str) -> str:
    """A whole page that needs nothing from outside itself."""
    return (
        '<!doctype html>\n<html lang="en-GB">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE_SHEET}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _cell(cell: str | Cell, *, first: bool) -> str:
    if isinstance(cell, str):
        cell = Cell(cell)
    text = escape(cell.text)
    if cell.strong:
        text = f"<strong>{text}</strong>"
    if cell.note:
        text += f"<small>{escape(cell.note)}</small>"
    return f'<th scope="row">{text}</th>' if first else f"<td>{text}</td>"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

STYLE_SHEET = """
:root { --page: #f7f6f3; --ink: #1f2933; --soft: #5d6975; --line: #dcdad4; --card: #ffffff;
  --panel: #ffffff; --good: #14795c; --care: #96610a; --bad: #b3361b; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e6e8ea; --soft: #a2acb6; --line: #333a42; --card: #ffffff;
    --panel: #1c2127; --good: #58c7a3; --care: #e5ad4b; --bad: #f28c70; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); 
  font: 1.02rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 50rem; margin: 0 auto; padding: 2.2rem 1.1rem 4rem; }
h1 { font-size: clamp(1.7rem, 5vw, 2.4rem); line-height: 1.15; margin: 0 0 .8rem;
  letter-spacing: -.02em; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 3rem 0 .7rem; letter-spacing: -.01em; }
h3 { font-size: 1.02rem; margin: 1.7rem 0 .3rem; }
p { margin: .6rem 0; }
.kind { color: var(--soft); margin: 0 0 .2rem; font-size: .88rem; }
.lead { font-size: 1.13rem; }
.note { color: var(--soft); font-size: .93rem; }
.good, .care, .bad { border-left: .25rem solid; padding: .15rem 0 .15rem .8rem; }
.good { border-color: var(--good); } .care { border-color: var(--care); }
.bad { border-color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem;
  margin: 1.4rem 0 0; padding: 0; }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: .7rem;
  padding: .8rem 1rem; }
.tiles dt { color: var(--soft); font-size: .84rem; }
.tiles dd { margin: .1rem 0 0; font-size: 1.55rem; font-weight: 650; line-height: 1.25; }
.tiles dd small { display: block; font-size: .84rem; font-weight: 400; color: var(--soft); }
figure { margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .7rem;
  padding: .7rem; overflow-x: auto; }
.card img { display: block; width: 100%; min-width: 27rem; height: auto; }
figcaption { color: var(--soft); font-size: .9rem; margin: .5rem .1rem 0; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .9rem; padding-bottom: .3rem; }
th, td { padding: .38rem .55rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 500; font-size: .84rem; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; white-space: normal; }
tbody th { font-weight: 500; overflow-wrap: anywhere; min-width: 7rem; }
td small, th small { display: block; color: var(--soft); font-size: .84em; font-weight: 400; }
details { border-top: 1px solid var(--line); padding: .6rem 0; }
details:last-of-type { border-bottom: 1px solid var(--line); }
summary { cursor: pointer; font-weight: 500; }
.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
@media print { body { background: #fff; } figure, tr { break-inside: avoid; } }
"""
