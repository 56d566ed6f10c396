"""A corpus of English that every machine with this project has: the prose in the docstrings of what it depends on.

Paragraphs of docstrings, told from code, tables and lists of parameters by their words; each paragraph once, however
often it is repeated. A document is one module's. Knows installed packages, and nothing of models.
"""

import ast
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("numpy", "scipy", "sklearn", "torch", "transformers", "datasets", "pandas")
_LEAST_WORDS, _LEAST_BYTES = 12, 400
_PROSE = 0.9
"""Share of a paragraph's characters that are letters, spaces and plain punctuation."""
_PLAIN = re.compile(r"[A-Za-z ,.;:'()-]")


def docstring_files(*, max_bytes: int) -> dict[str, bytes]:
    """Relative name of each module to its prose, sorted by name; packages take turns until `max_bytes` are full."""
    seen: set[str] = set()
    files: dict[str, bytes] = {}
    turns = [_modules(package) for package in PACKAGES]
    while turns and max_bytes > 0:
        for turn in list(turns):
            path = next(turn, None)
            if path is None:
                turns.remove(turn)
                continue
            name, source = path
            fresh = [p for p in _paragraphs(source) if p not in seen]
            seen.update(fresh)
            content = "\n\n".join(fresh).encode()
            if len(content) >= _LEAST_BYTES and len(content) <= max_bytes:
                files[name] = content
                max_bytes -= len(content)
    return dict(sorted(files.items()))


def _modules(package: str) -> Iterator[tuple[str, str]]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent
    for path in sorted(folder.rglob("*.py")):
        if not {"tests", "test", "testing"}.intersection(path.relative_to(folder).parts[:-1]):
            name = path.relative_to(folder.parent).with_suffix(".txt").as_posix()
            yield name, path.read_text(encoding="utf-8", errors="replace")


def _paragraphs(source: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                text = " ".join(paragraph.split())
                is_plain = len(_PLAIN.findall(text)) >= _PROSE * len(text) and text.endswith((".", ":"))
                if is_plain and len(text.split()) >= _LEAST_WORDS and ">>>" not in text:
                    yield text
