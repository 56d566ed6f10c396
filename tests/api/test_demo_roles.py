"""Syntactic roles, checked by hand on small sources."""

import re
import time

import numpy as np
import pytest

from quantascope.api.demo.corpus import standard_library_files
from quantascope.api.demo.roles import token_roles

PIECES = re.compile(r"[^\W\d]+|\d+|\s+|[^\w\s]")


def pieces_of(source: str) -> list[tuple[str, str]]:
    """Every word, number, sign and stretch of white space with its role."""
    spans = [match.span() for match in PIECES.finditer(source)]
    return [(source[a:b], role) for (a, b), role in zip(spans, token_roles(source, spans), strict=True)]


def roles_of(source: str, piece: str) -> list[str]:
    return [role for text, role in pieces_of(source) if text == piece]


def test_a_call_statement_from_end_to_end():
    assert pieces_of("self.run(k=1)\n") == [
        ("self", "Call.func>Attribute.value>Name"),
        (".", "Expr.value>Call.func>Attribute ."),
        ("run", "Expr.value>Call.func>Attribute.attr"),
        ("(", "Module.body>Expr.value>Call ("),
        ("k", "Expr.value>Call.keywords>keyword.arg"),
        ("=", "Expr.value>Call.keywords>keyword ="),
        ("1", "Call.keywords>keyword.value>Constant number"),
        (")", "Module.body>Expr.value>Call )"),
        ("\n", "Module end of file"),
    ]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(a: int): pass", ["Module.body>FunctionDef.args>arg :", "Module.body>FunctionDef def:"]),
        ("if a:\n  b\nelse:\n  c", ["Module.body>If if:", "Module.body>If else:"]),
        ("if a:\n  b\nelif c:\n  d", ["Module.body>If if:", "Module.body>If.orelse>If elif:"]),
        ("class C: pass", ["Module.body>ClassDef class:"]),
        ("x[1:2]", ["Expr.value>Subscript.slice>Slice :"]),
        ("{1: 2}", ["Module.body>Expr.value>Dict :"]),
        ("lambda: 0", ["Module.body>Expr.value>Lambda :"]),
        ("x: int", ["Module.body>AnnAssign :"]),
        ("for a in b: c", ["Module.body>For for:"]),
        ("with a as b: c", ["Module.body>With with:"]),
        ("while a if b else c: d", ["Module.body>While while:"]),
        (
            "try:\n  a\nexcept E as e:\n  b\nfinally:\n  c",
            ["Module.body>Try try:", "Module.body>Try.handlers>ExceptHandler except:", "Module.body>Try finally:"],
        ),
        ("match a:\n  case 1:\n    b", ["Module.body>Match match:", "Module.body>Match case:"]),
        (
            "async def f():\n  async with a: b",
            ["Module.body>AsyncFunctionDef def:", "AsyncFunctionDef.body>AsyncWith with:"],
        ),
    ],
)
def test_a_colon_says_what_it_belongs_to(source, expected):
    found = roles_of(source, ":")
    assert [role.endswith(wanted) for role, wanted in zip(found, expected, strict=True)] == [True] * len(expected), (
        found
    )


def test_brackets_of_calls_definitions_groups_and_tuples_differ():
    assert roles_of("f(x)", "(") == ["Module.body>Expr.value>Call ("]
    assert roles_of("f((x))", "(") == ["Module.body>Expr.value>Call (", "Module.body>Expr.value>Call group ("]
    assert roles_of("f((x, y))", "(")[1] == "Expr.value>Call.args>Tuple ("
    assert roles_of("f((x, y))", ")") == ["Expr.value>Call.args>Tuple )", "Module.body>Expr.value>Call )"]
    assert roles_of("def f(x): pass", "(") == ["Module.body>FunctionDef ("]
    assert roles_of("class C(B): pass", "(") == ["Module.body>ClassDef ("]
    assert roles_of("y = (x + 1)", "(") == ["Module.body>Assign group ("]
    assert roles_of("return_ = [x]", "[") == ["Module.body>Assign.value>List ["]


def test_a_calls_brackets_stay_its_own_around_a_lone_generator():
    source = "sum(x for x in y)"
    assert roles_of(source, "(") == ["Module.body>Expr.value>Call ("]
    assert roles_of(source, ")") == ["Module.body>Expr.value>Call )"]
    assert roles_of(source, "for") == ["Expr.value>Call.args>GeneratorExp for"]


def test_names_that_are_no_nodes_have_their_field():
    assert roles_of("def f(a): pass", "f") == ["Module.body>FunctionDef.name"]
    assert roles_of("def f(a): pass", "a") == ["Module.body>FunctionDef.args>arg.arg"]
    assert roles_of("class C: pass", "C") == ["Module.body>ClassDef.name"]
    assert roles_of("import a as b", "a") == ["Module.body>Import.names>alias.name"]
    assert roles_of("import a as b", "b") == ["Module.body>Import.names>alias.asname"]
    assert roles_of("from m import a", "m") == ["Module.body>ImportFrom.module"]
    assert roles_of("def f():\n global g", "g") == ["Module.body>FunctionDef.body>Global.names"]


def test_keywords_and_constants():
    assert roles_of("a = b if c else d", "else") == ["Module.body>Assign.value>IfExp else"]
    assert roles_of("a = None", "None") == ["Module.body>Assign.value>Constant None"]
    assert roles_of("a not in b", "in") == ["Module.body>Expr.value>Compare in"]
    assert roles_of("[x for x in y if z]", "if") == ["Module.body>Expr.value>ListComp if"]


def test_decorators_belong_to_their_definition():
    source = "@d(1)\ndef f(): pass\n"
    assert roles_of(source, "@") == ["Module.body>FunctionDef @"]
    assert roles_of(source, "d") == ["FunctionDef.decorator_list>Call.func>Name"]
    assert roles_of(source, "\n")[0] == "Module.body>FunctionDef newline, next statement"


def test_white_space_says_what_it_opens_and_closes():
    source = "def f():\n    if a:\n        b\n    else:\n        c\n    d\n\n\ne\n"
    blanks = [role for text, role in pieces_of(source) if "\n" in text]
    assert blanks == [
        "Module.body>FunctionDef.body newline, opens body",
        "Module.body>FunctionDef.body>If.body newline, opens body",
        "Module.body>FunctionDef.body>If newline, before else",
        "Module.body>FunctionDef.body>If.orelse newline, opens body",
        "Module.body>FunctionDef.body newline, after block",
        "Module.body blank line, after block",
        "Module end of file",
    ]


def test_indentation_apart_from_its_newline():
    source = "if a:\n    b\n    c\n"
    first, second = source.index("    b"), source.index("    c")
    offsets = [(first - 1, first), (first, first + 3), (first + 3, first + 5), (second, second + 4)]
    assert token_roles(source, offsets) == [
        "Module.body>If.body newline, opens body",
        "Module.body>If.body indentation, opens body",
        "If.body>Expr.value>Name",
        "Module.body>If.body indentation, next statement",
    ]


def test_newlines_within_brackets_before_comments_and_after_a_backslash():
    assert roles_of("f(\n  a)", "\n  ") == ["Module.body>Expr.value>Call ( newline, goes on"]
    assert roles_of("a\n# why\nb", "\n")[0] == "Module.body newline, before comment" or roles_of(
        "a\n# why\nb", "\n"
    ) == ["Module newline, before comment", "Module.body newline, next statement"]
    assert roles_of("a = \\\n 1", "\\") == ["Module.body>Assign line continuation"]


def test_strings_docstrings_and_comments():
    assert (
        pieces_of('def f():\n """D\ng"""')[-8:]
        == [
            *[('"', "FunctionDef.body>Expr.value>Constant docstring opens")] * 3,
            ("D", "FunctionDef.body>Expr.value>Constant docstring"),
            ("\n", "FunctionDef.body>Expr.value>Constant docstring newline"),
            ("g", "FunctionDef.body>Expr.value>Constant docstring"),
            *[('"', "FunctionDef.body>Expr.value>Constant docstring closes")] * 3,
        ][-8:]
    )
    assert roles_of("x = b'a'", "'") == [
        "Module.body>Assign.value>Constant string opens",
        "Module.body>Assign.value>Constant string closes",
    ]
    assert roles_of("x = f'a {b}'", "b") == ["Module.body>Assign.value>JoinedStr string"]
    assert roles_of("x = 1  # why", "why") == ["Module comment"]


def test_columns_are_bytes_for_ast_and_characters_here():
    assert roles_of("x = 'ééé', f(name)", "name") == roles_of("x = 'eee', f(name)", "name") != []
    assert roles_of("größe.länge(ß)", "ß") == ["Expr.value>Call.args>Name"]
    assert roles_of("𝐱 = '😀'; y = z", "z") == ["Module.body>Assign.value>Name"]


def test_a_token_counts_by_its_first_visible_character():
    assert token_roles("a = b\n", [(1, 3), (3, 5), (5, 6)]) == [
        "Module.body>Assign =",
        "Module.body>Assign.value>Name",
        "Module end of file",
    ]


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
def test_other_line_ends_and_a_byte_order_mark(newline):
    source = "if a:\n    bb\n".replace("\n", newline)
    start = source.index("bb")
    assert token_roles(source, [(start, start + 2)]) == ["If.body>Expr.value>Name"]
    assert token_roles("\ufeff" + source, [(0, 3), (start + 1, start + 3)]) == [
        "Module.body>If if",
        "If.body>Expr.value>Name",
    ]


def test_what_is_no_python_or_no_text():
    assert token_roles("def (:", [(0, 3), (4, 5)]) == ["unparsed", "unparsed"]
    assert token_roles("x = '\0'", [(0, 1)]) == ["unparsed"]
    assert token_roles("x", np.array([[0, 0], [0, 1]])) == ["no text", "Module.body>Expr.value>Name"]
    assert token_roles("", []) == []


def test_every_piece_of_real_modules_has_a_role_in_little_time():
    files = standard_library_files(max_bytes=900_000)
    name = max(files, key=lambda name: len(files[name]))
    for content in [files[name], *list(files.values())[:8]]:
        source = content.decode("utf-8")
        started = time.process_time()
        roles = [role for _, role in pieces_of(source)]
        assert time.process_time() - started < 1.5 * max(1.0, len(source) / 100_000) + 0.5
        assert "unparsed" not in roles
        assert all(roles)
