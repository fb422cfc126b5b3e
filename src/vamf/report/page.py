"""A self-contained HTML page: text, tables and figures, without external resources."""

import base64
import html
from collections.abc import Sequence, Set

STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --soft: #5b6570; --line: #d9dee3; --tint: #f5f7f9; --accent: #0b6aa2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 70rem; padding: 2.5rem 1.5rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { max-width: 48rem; margin: .5rem 0 .9rem; }
.lead { color: var(--soft); font-size: 1.05rem; }
ul { max-width: 48rem; padding-left: 1.3rem; }
figure { margin: 1.2rem 0; }
figure svg, figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); font-size: .9rem; max-width: 48rem; margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; background: var(--tint); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.wide { font-size: .82rem; }
.wide th, .wide td { padding: .3rem .5rem; }
.crowded td { white-space: normal; }
.crowded td:first-child { white-space: nowrap; }
td.best { font-weight: 700; color: var(--accent); }
code { background: var(--tint); border: 1px solid var(--line); border-radius: 4px;
       padding: .1em .35em; font-size: .9em; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""


WIDE, CROWDED = 7, 9
"""Tables with more columns than this use a smaller font; with still more, their cells may break into two lines."""


class Page:
    """A report, written from top to bottom."""

    def __init__(self, title: str, lead: str):
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']

    def section(self, title: str) -> None:
        """A heading."""
        self._parts.append(f"<h2>{html.escape(title)}</h2>")

    def text(self, *paragraphs: str) -> None:
        """Paragraphs; text between backquotes is shown as code."""
        self._parts += [f"<p>{_inline(paragraph)}</p>" for paragraph in paragraphs]

    def points(self, lines: Sequence[str]) -> None:
        """A list."""
        self._parts.append("<ul>" + "".join(f"<li>{_inline(line)}</li>" for line in lines) + "</ul>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], best: Set[tuple[int, int]] | None = None):
        """A table; cells (row, column) in `best` are highlighted."""
        sizes = [name for name, most in (("wide", WIDE), ("crowded", CROWDED)) if len(header) > most]
        wide = f' class="{" ".join(sizes)}"' if sizes else ""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{' class=best' if best and (i, j) in best else ''}>{html.escape(cell)}</td>"
                for j, cell in enumerate(row)
            )
            + "</tr>"
            for i, row in enumerate(rows)
        )
        self._parts.append(
            f'<div class="scroll"><table{wide}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, image: bytes, caption: str) -> None:
        """An image (SVG or PNG bytes) with its caption."""
        if image.startswith(b"\x89PNG"):
            content = f'<img alt="" src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        else:
            text = image.decode()
            content = text[text.index("<svg") :]
        self._parts.append(f"<figure>{content}<figcaption>{_inline(caption)}</figcaption></figure>")

    def render(self, footer: str) -> str:
        """The whole file."""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            + "\n".join(self._parts)
            + f"\n<footer>{_inline(footer)}</footer>\n</body>\n</html>\n"
        )


def _inline(text: str) -> str:
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
