"""What a user of the package sees: every public name says what it is, and few are at the front door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nattools

PACKAGE = Path(__file__).parents[1] / "nattools"
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_NAMES = 25

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def undocumented(source: str) -> Iterator[str]:
    """What lacks a docstring: the module, its public classes and functions, and their public methods."""
    module = ast.parse(source)
    if ast.get_docstring(module) is None:
        yield "the module itself"
    yield from _undocumented(module.body, "")


def _undocumented(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):  # a name that depends on the system
            yield from _undocumented(node.body + node.orelse, prefix)
        if not isinstance(node, Definition) or node.name.startswith("_") or _repeats_another(node):
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}{node.name}, line {node.lineno}"
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node.body, f"{prefix}{node.name}.")


def _repeats_another(node: Definition) -> bool:
    """Whether it is an overload, or the setter of a property that has its docstring already."""
    return any(
        ast.unparse(decorator).rpartition(".")[2] in ("overload", "override", "setter", "deleter")
        for decorator in node.decorator_list
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_public_name_has_a_docstring(path: Path) -> None:
    assert not list(undocumented(path.read_text(encoding="utf-8")))


def test_there_are_few_names_at_the_front_door() -> None:
    names = getattr(nattools, "__all__", [])
    assert len(names) <= MOST_NAMES
    assert all(hasattr(nattools, name) for name in names)


@pytest.mark.parametrize("name", ["sip.SipMessage", "sip.Rewriter", "blocking.PublicSocket", "Endpoint"])
def test_a_room_with_names_of_its_own_needs_no_import_of_its_own(name: str) -> None:
    program = f"import nattools; nattools.{name}"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=PACKAGE.parent)


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("x = 1", ["the module itself"]),
        ('"""Doc."""\ndef f(): pass', ["f, line 2"]),
        ('"""Doc."""\nasync def f(): pass', ["f, line 2"]),
        ('"""Doc."""\nclass A: pass', ["A, line 2"]),
        ('"""Doc."""\nclass A:\n    """Doc."""\n    def f(self): pass', ["A.f, line 4"]),
        ('"""Doc."""\nif True:\n    def f(): pass', ["f, line 3"]),
        ('"""Doc."""\ndef _f(): pass\nclass _A:\n    def f(self): pass', []),
        ('"""Doc."""\nclass A:\n    """Doc."""\n    def __init__(self): pass', []),
        ('"""Doc."""\n@overload\ndef f(x: int): ...\ndef f(x):\n    """Doc."""', []),
        ('"""Doc."""\ndef f():\n    """Doc."""\n    def inner(): pass', []),
    ],
)
def test_a_missing_docstring_is_noticed(source: str, missing: list[str]) -> None:
    assert list(undocumented(source)) == missing
