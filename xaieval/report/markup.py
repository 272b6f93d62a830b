"""Names and tables in LaTeX, Markdown and HTML: what is special there is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from xaieval.errors import UsageError, printable
from xaieval.results.markdown import markdown_table

__all__ = ["html_table", "in_latex", "in_markdown", "latex_table", "markdown_text"]

UP, DOWN = "\u2191", "\u2193"
ESCAPED = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": "$|$", '"': "''", "`": r"\`{}"},
    **{
        UP: r"$\uparrow$",
        DOWN: r"$\downarrow$",
        "\u2212": "$-$",
        "\u00d7": r"$\times$",
        "\u2265": r"$\geq$",
        "\u2264": r"$\leq$",
    },
}
# A table is set in smaller letters where it would be wider than the text of LaTeX's article of 10 points. In points:
PAGE, GAP, LETTER = 345, 3, 5.1  # width of the text, half of the space between columns, mean width of a letter
SIZES = {"": 1.0, r"\small": 0.925, r"\footnotesize": 0.85, r"\scriptsize": 0.8}  # small letters are made wider
WIDE = "% may be wider than the page: score fewer metrics, or use sidewaystable of the package rotating instead of table"
UNPRINTED = re.compile(r"\\[A-Za-z]+|[\\{}$]")  # of a cell
LABEL = re.compile(r"[\w:.+/-]*", re.ASCII)
MARKED = re.compile(r"[\\`*|<]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is no mark


def in_latex(text: str) -> str:
    r"""Text for LaTeX, with its special characters escaped.

    A bracket or star at the beginning is put into braces, since `\\` and the rules of booktabs would take it for an argument.
    Letters beyond the Latin ones stay as they are, and need XeLaTeX or LuaLaTeX.

    Example:
        >>> print(in_latex("fpn[p_2] 50 %"), in_latex("[0]"))
        fpn[p\_2] 50 \% {[}0]
    """
    written = "".join(ESCAPED.get(sign, sign) for sign in printable(text))
    written = re.sub("([-,])(?=\\1)", r"\1{}", written)  # no dash of two hyphens, no quotation mark of two commas
    return f"{{{written[0]}}}{written[1:]}" if written[:1] in ("[", "*") else written


def in_markdown(text: str) -> str:
    r"""Text for a cell of a Markdown table, with marks and column signs escaped.

    Example:
        >>> print(in_markdown("a|b"), in_markdown("layer4_1"), in_markdown("fpn[*]"))
        a\|b layer4_1 fpn[\*]
    """
    return MARKED.sub(r"\\\g<0>", printable(text))


def latex_table(lines: Sequence[Sequence[str]], names: int, caption: str, label: str = "", notes: Sequence[str] = ()) -> str:
    """A table for LaTeX, which needs the package booktabs, in letters small enough for the width of a page.

    Args:
        lines: Headings and rows, escaped; all as long as the headings. A column without a heading belongs to the one before it,
            stands close to it, and is set as a superscript.
        names: Number of leading columns with names, which are set to the left.
        caption: Text, which is escaped here.
        label: The name for references. Default: none.
        notes: Comments at the top.

    Raises:
        UsageError: The label has a character that LaTeX does not take in one.
    """
    if not LABEL.fullmatch(label):
        raise UsageError(f"a label of LaTeX has letters, digits and : . + / - _, such as 'tab:levels'; got {label!r}")
    heads, *rows = lines
    raised = [place for place, head in enumerate(heads) if not head]
    columns = ["@{}l" if place in raised else "l" if place < names else "r" for place in range(len(heads))]
    over = [rf"\multicolumn{{2}}{{c}}{{{head}}}" if place + 1 in raised else head for place, head in enumerate(heads)]
    body = [
        [rf"\textsuperscript{{{cell}}}" if cell and place in raised else cell for place, cell in enumerate(row)] for row in rows
    ]
    fitting = [size for size, share in SIZES.items() if _width(lines, raised, share) <= PAGE]
    size = fitting[0] if fitting else [*SIZES][-1]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            *([] if fitting else [WIDE]),
            *(f"% {printable(note)}" for note in notes),
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{in_latex(caption)}}}",
            *([rf"  \label{{{label}}}"] if label else []),
            *([rf"  {size}"] if size else []),
            rf"  \setlength{{\tabcolsep}}{{{GAP}pt}}",
            rf"  \begin{{tabular}}{{{''.join(columns)}}}",
            r"    \toprule",
            rf"    {' & '.join(filter(None, over))} \\",
            r"    \midrule",
            *(rf"    {' & '.join(row)} \\" for row in body),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
        ]
    )


def _width(lines: Sequence[Sequence[str]], raised: Sequence[int], share: float) -> float:
    """About how wide a table is in points, in letters of a share of the size of the text."""
    widths = [max(len(UNPRINTED.sub("", cell)) for cell in column) for column in zip(*lines, strict=True)]
    letters = sum(0.7 * width if place in raised else width for place, width in enumerate(widths))
    return share * letters * LETTER + 2 * GAP * (len(widths) - len(raised))


def markdown_text(lines: Sequence[Sequence[str]], caption: str, notes: Sequence[str] = ()) -> str:
    """A table in Markdown with escaped cells, the caption below it, and notes as a list."""
    heads, *rows = lines
    listed = "\n".join(f"- {note}" for note in notes)
    return "\n\n".join(filter(None, [markdown_table(heads, rows), caption, listed]))


def html_table(lines: Sequence[Sequence[str]], names: int, caption: str, notes: Sequence[str] = ()) -> str:
    """A table in HTML with escaped cells, without colours of its own, for light and dark pages.

    Args:
        lines: Headings and rows, escaped.
        names: Number of leading columns with names, which are headings of their row.
        caption: Text, which is escaped here.
        notes: Sentences above the table, as a list.
    """
    heads, *rows = lines
    listed = f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>\n" if notes else ""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(f"<tr>{_cells(row, names)}</tr>" for row in rows)
    below = "caption-side: bottom; text-align: left; white-space: normal"
    titled = f'<caption style="{below}">{escape(caption)}</caption>\n<thead>\n<tr>{head}</tr>\n</thead>'
    return f"{listed}<table>\n{titled}\n<tbody>\n{body}\n</tbody>\n</table>"


def _cells(row: Sequence[str], names: int) -> str:
    """The cells of a row."""
    named = "".join(f'<th scope="row">{cell}</th>' for cell in row[:names])
    return named + "".join(f"<td>{cell}</td>" for cell in row[names:])
