"""The syntactic role of every token of a Python source, read off Python's own `tokenize` and `ast`.

Knows Python's grammar and character offsets. Knows nothing of models: the tokens may come from any tokenizer.

A role is a path of the innermost three syntax nodes, each with the field in which the next one sits, and, where
the node alone doesn't say it, what the token does there:

    Assign.value>Call.func>Name              a name
    Expr.value>Call.func>Attribute.attr      the name behind the dot
    Assign.value>Call (                      a call's bracket (`group (` where it only groups)
    Module.body>If else:                     the colon behind else
    FunctionDef.body>If.orelse newline, opens body

Nodes that only hold others (`arguments`, `comprehension`, `withitem`, `match_case`) are passed over: their fields
count as their parent's. An f-string is one node.
"""

import ast
import io
import keyword
import re
import tokenize
import warnings
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

UNPARSED = "unparsed"
"""The role of every token of a source that is not Python."""

NO_TEXT = "no text"
"""The role of a token that stands for no characters, such as the end of a document."""

_DEPTH = 3
_TRANSPARENT = (ast.arguments, ast.comprehension, ast.withitem, ast.match_case)
_OPAQUE = (ast.JoinedStr,)  # positions inside f-strings are wrong before Python 3.12
_HEADERS = frozenset(
    ["if", "elif", "else", "for", "while", "try", "except", "finally", "with", "def", "class", "match", "case"]
)
_COMPOUND = frozenset(
    [
        "If",
        "For",
        "AsyncFor",
        "While",
        "Try",
        "TryStar",
        "ExceptHandler",
        "With",
        "AsyncWith",
        "FunctionDef",
        "AsyncFunctionDef",
        "ClassDef",
        "Match",
    ]
)
_NAME_FIELDS = {
    "FunctionDef": "name",
    "AsyncFunctionDef": "name",
    "ClassDef": "name",
    "ExceptHandler": "name",
    "MatchAs": "name",
    "MatchStar": "name",
    "Attribute": "attr",
    "keyword": "arg",
    "arg": "arg",
    "alias": "name",
    "ImportFrom": "module",
    "Global": "names",
    "Nonlocal": "names",
}
_SILENT = frozenset(
    {tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER, tokenize.ENCODING}
)
_QUOTES = re.compile(r"[a-zA-Z]*('''|\"\"\"|'|\")")


@dataclass(frozen=True, slots=True)
class _Node:
    kind: str
    path: str
    container: str
    """The path of the field that this node sits in."""
    parent: int
    start: int
    is_docstring: bool = False


@dataclass(slots=True)
class _Lexeme:
    kind: int
    text: str
    start: int
    end: int
    relation: str
    """For the first of a line: whether its line opens a body, follows a block, or is the next statement."""
    bracket: int = -1
    """The innermost bracket that is open before this lexeme; an index of a lexeme, or -1."""
    header: str = ""
    """The last block keyword of this logical line."""
    node: int = 0
    opener: int = -1
    """For a closing bracket, the lexeme that opened it."""


@dataclass(slots=True)
class _Source:
    text: str
    nodes: list[_Node] = field(default_factory=list)
    lexemes: list[_Lexeme] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


def token_roles(source: str, offsets: Sequence[Sequence[int]] | np.ndarray) -> list[str]:
    """One role for each token, by the token's first character that is not white space.

    `offsets` holds each token's first (inclusive) and last (exclusive) character in `source`, shape [token, 2]; a
    token of white space has the role of what it does there: ending a statement, opening a body, going on within a
    bracket. A token without characters has the role `no text`; where `source` is not Python, each has `unparsed`.
    """
    pairs = [(int(first), int(last)) for first, last in offsets]
    shift = int(source.startswith("\ufeff"))
    try:
        parsed = _parse(source[shift:])
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return [UNPARSED] * len(pairs)
    return [_role(parsed, max(0, first - shift), last - shift) for first, last in pairs]


def _parse(text: str) -> _Source:
    text = re.sub(r"\r(?!\n)", "\n", text)  # ast ends a line at a lone \r, tokenize does not
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    source = _Source(text)
    owner = _paint(source, tree)
    source.lexemes = list(_lexemes(text))
    source.starts = [lexeme.start for lexeme in source.lexemes]
    for lexeme in source.lexemes:
        lexeme.node = int(owner[lexeme.start])
    _settle_brackets(source)
    return source


def _paint(source: _Source, tree: ast.Module) -> np.ndarray:
    """For every character the index of its innermost node, int32; fills `source.nodes`, parents first."""
    columns = _Columns(source.text)
    owner = np.zeros(len(source.text) + 1, dtype=np.int32)
    source.nodes.append(_Node("Module", "Module", "Module", 0, 0))
    pending: list[tuple[ast.AST, int, tuple[str, ...]]] = [
        (child, 0, (f"Module.{name}",)) for name, child in _children(tree)
    ]
    while pending:
        node, parent, above = pending.pop()
        start, end = columns.span(node)
        kind, docstring = type(node).__name__, _is_docstring(node, source.nodes[parent], above)
        path = ">".join((*above[1 - _DEPTH :], kind))
        source.nodes.append(_Node(kind, path, ">".join(above[-_DEPTH:]), parent, start, docstring))
        index = len(source.nodes) - 1
        owner[start:end] = index
        if not isinstance(node, _OPAQUE):
            pending += [(child, index, (*above[1 - _DEPTH :], f"{kind}.{name}")) for name, child in _children(node)]
    return owner


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The nodes below this one that have a place in the text, each with its field."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else (value,):
            if isinstance(child, _TRANSPARENT):
                yield from _children(child)
            elif isinstance(child, ast.AST) and hasattr(child, "lineno"):
                yield name, child


def _is_docstring(node: ast.AST, parent: _Node, above: tuple[str, ...]) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and parent.kind == "Expr"
        and parent.container.endswith(("Module.body", "ClassDef.body", "FunctionDef.body"))
        and above[-1] == "Expr.value"
    )


class _Columns:
    """From ast's lines and UTF-8 columns to characters of the whole text."""

    def __init__(self, text: str) -> None:
        self._text = text
        lines = text.split("\n")
        self._starts = np.concatenate([[0], np.cumsum([len(line) + 1 for line in lines])]).tolist()
        self._wide = {i: line.encode() for i, line in enumerate(lines) if not line.isascii()}

    def at(self, line: int, column: int) -> int:
        if (wide := self._wide.get(line - 1)) is not None:
            column = len(wide[:column].decode())
        return int(self._starts[line - 1]) + column

    def span(self, node: ast.AST) -> tuple[int, int]:
        """First (inclusive) and last (exclusive) character; a definition begins at its first decorator's @."""
        start = self.at(node.lineno, node.col_offset)  # type: ignore[attr-defined]  # _children saw to it
        end = self.at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]
        if decorators := getattr(node, "decorator_list", None):
            first = self.at(decorators[0].lineno, decorators[0].col_offset)
            start = self._text.rfind("@", 0, first)
        return start, end


def _lexemes(text: str) -> Iterator[_Lexeme]:
    """Python's own tokens that are not white space, with brackets, headers and line starts marked."""
    starts = [0, *(match.end() for match in re.finditer("\n", text))]
    brackets: list[int] = []
    relation, header, index = "opens file", "", 0
    for kind, string, (line, column), (last_line, last_column), _ in tokenize.generate_tokens(
        io.StringIO(text, newline="").readline
    ):
        if kind in _SILENT:
            relation = _next_relation(kind, relation)
            header = "" if kind == tokenize.NEWLINE else header
            continue
        if kind == tokenize.NAME and string in _HEADERS and not brackets:
            header = header or string  # a later `if` or `else` is a conditional expression's
        start, end = starts[line - 1] + column, starts[last_line - 1] + last_column
        lexeme = _Lexeme(kind, string, start, end, relation, brackets[-1] if brackets else -1, header)
        if kind == tokenize.OP and string in "([{":
            brackets.append(index)
        elif kind == tokenize.OP and string in ")]}" and brackets:
            lexeme.opener = brackets.pop()
        if kind != tokenize.COMMENT:
            relation = ""
        index += 1
        yield lexeme


def _next_relation(kind: int, relation: str) -> str:
    if kind == tokenize.INDENT:
        return "opens body"
    if kind == tokenize.DEDENT:
        return "after block"
    return "next statement" if kind == tokenize.NEWLINE else relation


def _settle_brackets(source: _Source) -> None:
    """Give a call's brackets to the call where its only argument, a generator, claims them; close as opened."""
    lexemes, nodes = source.lexemes, source.nodes
    for index, lexeme in enumerate(lexemes):
        if lexeme.opener >= 0:
            lexeme.node = lexemes[lexeme.opener].node
        elif lexeme.text == "(" and nodes[lexeme.node].kind == "GeneratorExp" and _follows_value(lexemes, index):
            lexeme.node = nodes[lexeme.node].parent


def _follows_value(lexemes: list[_Lexeme], index: int) -> bool:
    """Whether the lexeme before is something that can be called, subscripted or defined."""
    if index == 0:
        return False
    before = lexemes[index - 1]
    if before.kind == tokenize.NAME:
        return not keyword.iskeyword(before.text)
    return before.text in {")", "]", "}"} or before.kind == tokenize.STRING


def _role(source: _Source, first: int, last: int) -> str:
    piece = source.text[first:last]
    if not piece:
        return NO_TEXT
    blank = not piece.strip()
    position = first if blank else first + len(piece) - len(piece.lstrip())
    index = bisect_left(source.starts, position + 1) - 1
    if index >= 0 and position < source.lexemes[index].end:
        return _lexeme_role(source, index, position)
    if blank:
        return _blank_role(source, index, piece, last)
    return f"{source.nodes[_enclosing(source, index)].path} line continuation"


def _enclosing(source: _Source, index: int) -> int:
    return source.lexemes[index].node if index >= 0 else 0


def _lexeme_role(source: _Source, index: int, position: int) -> str:
    lexeme = source.lexemes[index]
    node = source.nodes[lexeme.node]
    if lexeme.kind == tokenize.COMMENT:
        return f"{node.path} comment"
    if node.kind == "JoinedStr":
        return f"{node.path} string"
    if lexeme.kind == tokenize.STRING:
        return f"{node.path} {_string_part(lexeme, node, position)}"
    if lexeme.kind == tokenize.NUMBER:
        return f"{node.path} number"
    if lexeme.kind == tokenize.NAME:
        return _name_role(source, index)
    return f"{node.path} {_operator(source, index)}"


def _string_part(lexeme: _Lexeme, node: _Node, position: int) -> str:
    name = "docstring" if node.is_docstring else "string"
    opening = _QUOTES.match(lexeme.text)
    if opening is None:
        return name
    if position < lexeme.start + opening.end():
        return f"{name} opens"
    if position >= lexeme.end - len(opening.group(1)):
        return f"{name} closes"
    return f"{name} newline" if lexeme.text[position - lexeme.start] == "\n" else name


def _name_role(source: _Source, index: int) -> str:
    lexeme = source.lexemes[index]
    node = source.nodes[lexeme.node]
    if keyword.iskeyword(lexeme.text):
        return f"{node.path} {lexeme.text}"
    if node.kind == "alias" and index and source.lexemes[index - 1].text == "as":
        return f"{node.path}.asname"
    if name_field := _NAME_FIELDS.get(node.kind):
        return f"{node.path}.{name_field}"
    if node.kind not in {"Name", "Constant"}:
        return f"{node.path} {lexeme.text if lexeme.text in keyword.softkwlist else 'name'}"
    return node.path


def _operator(source: _Source, index: int) -> str:
    """The operator itself; a block's colon with its keyword, a bracket that only groups with that word."""
    lexeme = source.lexemes[index]
    kind = source.nodes[lexeme.node].kind
    if lexeme.text == ":" and kind in _COMPOUND and lexeme.header:
        return f"{lexeme.header}:"
    opener = lexeme.opener if lexeme.opener >= 0 else index
    if (
        source.lexemes[opener].text == "("
        and source.lexemes[opener].start != source.nodes[lexeme.node].start
        and not _follows_value(source.lexemes, opener)
        and kind != "ImportFrom"
    ):
        return f"group {lexeme.text}"
    return lexeme.text


def _blank_role(source: _Source, before: int, piece: str, last: int) -> str:
    """What white space outside of strings and comments does; `before` is the lexeme that ends before it."""
    gap_start = source.lexemes[before].end if before >= 0 else 0
    if before + 1 == len(source.lexemes):
        return "Module end of file"
    after = source.lexemes[before + 1]
    if "\n" not in source.text[gap_start:last]:
        return f"{source.nodes[after.node].path} space"
    kind = "newline" if "\n" in piece else "indentation"
    if after.bracket >= 0:
        opener = source.lexemes[after.bracket]
        return f"{source.nodes[opener.node].path} {opener.text} {kind}, goes on"
    if kind == "newline" and source.text[gap_start : after.start].count("\n") > 1:
        kind = "blank line"
    return f"{_place_of_line(source, after)} {kind}, {_relation(after)}"


def _place_of_line(source: _Source, first: _Lexeme) -> str:
    """The body that a line's first lexeme sits in; the statement itself before `else` and its like."""
    index, place = first.node, ""
    while index and source.nodes[index].start == first.start:
        place, index = source.nodes[index].container, source.nodes[index].parent
    return place or source.nodes[first.node].path


def _relation(first: _Lexeme) -> str:
    if first.kind == tokenize.COMMENT:
        return "before comment"
    if first.text in {"else", "elif", "except", "finally", "case"}:
        return f"before {first.text}"
    return first.relation or "goes on"
