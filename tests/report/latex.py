"""A reader of LaTeX tables that knows just enough of LaTeX to refuse what would not compile, or would print something else."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(r"%[^\n]*\n?|\\[A-Za-z]+[ \n]*|\\.|.|\n", re.DOTALL)
SYMBOLS = {
    "textbackslash": "\\",
    "textasciitilde": "~",
    "textasciicircum": "^",
    "textless": "<",
    "textgreater": ">",
}
OF_MATHS = {"uparrow": "\u2191", "downarrow": "\u2193", "times": "\u00d7", "geq": "\u2265", "leq": "\u2264"}
SIZES = (r"\small", r"\footnotesize", r"\scriptsize")
RULES = ("toprule", "midrule", "bottomrule")
WRONG_GLYPHS = '<>|"`'  # of the standard text font
ACTIVE = "#~^_"


class BadLatexError(AssertionError):
    """The text would not compile, or would not print what was meant."""


@dataclass
class Table:
    """What is printed: caption, label, columns, size of the letters, and rows of cells as plain text."""

    caption: str = ""
    label: str = ""
    columns: str = ""
    size: str = ""
    rows: list[list[str]] = field(default_factory=list)
    bold: list[str] = field(default_factory=list)


def read_latex(text: str) -> Table:
    """Read a table; raise an error at the first fault."""
    return _Reader(text).table()


class _Reader:
    def __init__(self, text: str) -> None:
        self.tokens = [token for token in TOKEN.findall(text) if not token.startswith("%")]
        self.found = Table()

    def peek(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self, expected: str | None = None) -> str:
        if not self.tokens:
            raise BadLatexError("the text ends too early")
        token = self.tokens.pop(0)
        if expected is not None and token.rstrip() != expected:
            raise BadLatexError(f"{expected} expected, got {token!r}")
        return token

    def blanks(self) -> None:
        while self.tokens and self.peek().isspace():
            self.take()

    def word(self) -> str:
        """The name of a command."""
        token = self.take().rstrip()
        if not re.fullmatch(r"\\[A-Za-z]+", token):
            raise BadLatexError(f"a command expected, got {token!r}")
        return token[1:]

    def raw(self) -> str:
        """An argument that is no text, such as a label."""
        self.take("{")
        content = ""
        while self.peek() != "}":
            content += self.take()
        self.take("}")
        if re.search(r"[\\{}%#$&~^]", content):
            raise BadLatexError(f"{content!r} cannot be an argument")
        return content

    def begin(self, name: str) -> None:
        self.blanks()
        if (self.word(), self.raw()) != ("begin", name):
            raise BadLatexError(f"{name} expected")

    def table(self) -> Table:
        self.begin("table")
        self.blanks()
        self.take(r"\centering")
        self.blanks()
        self.take(r"\caption")
        self.found.caption = self.group()
        self.blanks()
        if self.peek().rstrip() == r"\label":
            self.word()
            self.found.label = self.raw()
            self.blanks()
        if self.peek().rstrip() in SIZES:
            self.found.size = self.word()
            self.blanks()
        self.take(r"\setlength")
        if not re.fullmatch(r"\{\\tabcolsep\}\{\dpt\}", "".join(self.tokens.pop(0) for _ in range(8))):
            raise BadLatexError("a width of the gaps between columns expected")
        self.begin("tabular")
        self.found.columns = self.columns()
        self.body()
        self.blanks()
        if (self.word(), self.raw()) != ("end", "table"):
            raise BadLatexError("the table does not end")
        self.blanks()
        if self.tokens:
            raise BadLatexError(f"{''.join(self.tokens)!r} is left over")
        return self.found

    def columns(self) -> str:
        """The columns of a tabular: l, r, and "." for one that is set to the left without a gap."""
        self.take("{")
        content = ""
        while not (content.count("{") == content.count("}") and self.peek() == "}"):
            content += self.take()
        self.take("}")
        if not re.fullmatch(r"(l|r|@\{\}l)+", content):
            raise BadLatexError(f"{content!r} are no columns")
        return content.replace("@{}l", ".")

    def body(self) -> None:
        """Rows, between rules, up to the end of the tabular."""
        while True:
            self.blanks()
            name = self.peek().rstrip().removeprefix("\\")
            if name in RULES:
                self.word()
                self.no_argument(name)
            elif name == "end":
                self.word()
                if self.raw() != "tabular":
                    raise BadLatexError("the tabular does not end")
                return
            else:
                self.row()

    def no_argument(self, of: str) -> None:
        """What follows must not be taken for an optional argument or a star."""
        self.blanks()
        if self.peek() in ("[", "*"):
            raise BadLatexError(f"{of} takes {self.peek()!r} for an argument")

    def row(self) -> None:
        cells = [""]
        while True:
            token = self.peek()
            if token == "&":
                self.take()
                cells.append("")
            elif token.rstrip() == r"\multicolumn":
                if cells[-1].strip("\n "):
                    raise BadLatexError(r"\multicolumn does not begin its cell")
                self.take()
                if (self.raw(), self.raw(), self.found.columns[len(cells) : len(cells) + 1]) != ("2", "c", "."):
                    raise BadLatexError("a heading spans other columns than a mean and its letters")
                cells[-1] += self.group()
                cells.append("")
            elif token == r"\\":
                self.take()
                self.no_argument(r"\\")
                break
            else:
                cells[-1] += self.piece()
        if len(cells) != len(self.found.columns):
            raise BadLatexError(f"{len(cells)} cells in {len(self.found.columns)} columns: {cells}")
        self.found.rows.append([_shown(cell).strip() for cell in cells])

    def group(self) -> str:
        self.take("{")
        content = ""
        while self.peek() != "}":
            content += self.piece()
        self.take("}")
        return _shown(content)

    def piece(self) -> str:
        """One thing in a text, as it is printed. Braces become a mark that keeps hyphens apart."""
        token = self.take()
        if token == "{":
            self.tokens.insert(0, token)
            return f"\0{self.group()}\0"
        if token == "$":
            return self.maths()
        if token.startswith("\\"):
            return self.command(token)
        if token in ("}", "&", *ACTIVE) or token in WRONG_GLYPHS:
            raise BadLatexError(f"{token!r} stands in a text")
        if ord(token) > 0x24F:
            raise BadLatexError(f"LaTeX has no {token!r}")
        return token

    def command(self, token: str) -> str:
        name = token[1:].rstrip()
        if name in SYMBOLS:
            if token[-1].isspace():
                raise BadLatexError(f"{token!r} swallows a space")
            return SYMBOLS[name]
        if name == "`":  # the accent of no letter
            if self.group():
                raise BadLatexError("an accent on a letter")
            return name
        if name == "textsuperscript":
            return self.group()
        if name == "textbf":
            content = self.group()
            self.found.bold.append(content)
            return content
        if len(name) == 1 and name in "&%$#_{}":
            return name
        raise BadLatexError(f"no command {token!r} in a text")

    def maths(self) -> str:
        content = ""
        while (token := self.take()) != "$":
            name = token[1:].rstrip()
            if token == "-":
                content += "\u2212"
            elif token == "|":
                content += token
            elif token.startswith("\\") and name in OF_MATHS:
                content += OF_MATHS[name]
            else:
                raise BadLatexError(f"{token!r} in a formula")
        return content


def _shown(text: str) -> str:
    """The text as it is printed; two hyphens would be a dash, two commas a quotation mark."""
    if "--" in text or ",," in text:
        raise BadLatexError("two hyphens are a dash")
    return " ".join(text.replace("''", '"').replace("\0", "").split())
