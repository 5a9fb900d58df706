"""The tests that judge a program: run here, where nothing of the program's can reach. Their names for the program's functions
and objects are stand-ins, which have the candidate do the work and bring back copies of plain values.

Standard output gets one line of JSON: {"passed": true or false, "why"}, or {"unusable": why} where the tests are at fault.

Names that Python itself or a standard module has mean those, whatever the program calls so: it could else judge itself with
an `abs` or a `math` of its own. An object of the program meets others of its own in `==`, `<`, `+` and so on, never a plain
value: it could else claim to equal everything.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from engine.rewards.inside.candidate import BINARY
from engine.rewards.inside.wire import Gone, Line, Message, decode, encode, raised

_PROGRAM = ("solution", "program", "main", "__main__")  # modules by which test files import what they judge
_COUNT = "__assert_runs__"


class Unusable(Exception):
    """The tests themselves are at fault."""


class _Unsendable(TypeError):
    """A test passes something that cannot travel."""


class Remote:
    """Stands for a function, class or object of the program."""

    def __init__(self, tester: Tester, number: int) -> None:
        object.__setattr__(self, "_tester", tester)
        object.__setattr__(self, "_number", number)

    def _do(self, op: str, *args: Any, **kwargs: Any) -> Any:
        return self._tester.do(op, [self, *args], kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._do("call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._do("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._do("setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        self._do("delitem", key)

    def __iter__(self) -> Any:  # there is no __contains__: `in` compares here
        return self._do("iter")

    def __next__(self) -> Any:
        return self._do("next")

    def __len__(self) -> int:
        return int(self._do("len"))

    def __bool__(self) -> bool:
        return self._do("bool") is True

    def __str__(self) -> str:
        return str(self._do("str"))

    def __repr__(self) -> str:
        return str(self._do("repr"))

    def __hash__(self) -> int:
        return hash(self._number)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._do("isinstance", value) is True


def _binary(name: str) -> Callable[[Remote, Any], Any]:
    def apply(self: Remote, value: Any) -> Any:
        return self._do(name, value) if isinstance(value, Remote) else NotImplemented

    return apply


for _name in BINARY:
    setattr(Remote, f"__{_name.rstrip('_')}__", _binary(_name))


class Tester:
    def __init__(self, descriptors: list[int]) -> None:
        self._line = Line(descriptors, self._answer)
        self._functions: list[Any] = []
        self._exceptions: dict[str, type[Exception]] = {}
        self.asserts = 0
        self.gone = ""  # why the conversation broke off: a bare `except:` in a test must not hide it

    def do(self, op: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The result of an operation in the candidate. What it raises there is raised here, as the nearest class known here."""
        coded = {key: self._encode(value) for key, value in kwargs.items()}
        answer = self._ask({"op": op, "args": self._encode(args), "kwargs": coded})
        if "raised" in answer:
            raise self._exception(answer["raised"])(answer.get("text", ""))
        for arg, data in zip(args, answer.get("changed", ()), strict=False):
            self._follow(arg, data)
        return self._decode(answer.get("value"))

    def names(self, names: list[str]) -> dict[str, Any]:
        """The program's globals of these names."""
        found = {}
        for name, data in self._ask({"op": "names", "names": names}).get("names", {}).items():
            own = isinstance(data, dict) and data.get("exception")
            found[name] = self._own_exception(own) if own else self._decode(data)
        return found

    def await_program(self) -> str:
        """Empty when the program has run to its end, else why it has not."""
        try:
            answer = self._line.receive()
        except Gone as gone:
            return str(gone)
        return "" if "ready" in answer else f"{answer['raised'][0]}: {answer['text']}"

    def _ask(self, request: Message) -> Message:
        try:
            return self._line.ask(request)
        except Gone as gone:
            self.gone = str(gone)
            raise

    def _answer(self, request: Message) -> Message:
        """Of the candidate's requests: one of the functions that a test has passed to it is called back."""
        try:
            args, kwargs = self._decode(request["args"]), request["kwargs"]
            function = self._functions[request["function"]]
            return {"value": self._encode(function(*args, **{key: self._decode(value) for key, value in kwargs.items()}))}
        except Exception as error:  # noqa: BLE001  # a test's function may raise anything; its caller is told
            return raised(error)

    def _follow(self, arg: Any, data: Any) -> None:
        new = None if data is None else self._decode(data)
        if isinstance(arg, list) and isinstance(new, list):
            arg[:] = new
        elif isinstance(arg, dict | set) and isinstance(new, dict | set) and type(arg) is type(new):
            arg.clear()
            arg.update(new)

    def _exception(self, names: list[str]) -> type[Exception]:
        for name in names:
            kind = self._exceptions.get(name) or getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                return kind
        return RuntimeError

    def _own_exception(self, names: list[str]) -> type[Exception]:
        """A class of the program's name, so that a test's `except` can name it."""
        self._exceptions[names[0]] = kind = type(names[0], (self._exception(names[1:]),), {})
        return kind

    def _encode(self, value: Any) -> Any:
        return encode(value, self._other)

    def _other(self, value: Any) -> Message:
        if isinstance(value, Remote):
            return {"object": value._number}
        if callable(value):
            self._functions.append(value)
            return {"function": len(self._functions) - 1}
        raise _Unsendable(f"the tests pass a {type(value).__name__}, which cannot be sent to the program")

    def _decode(self, data: Any) -> Any:
        try:
            return decode(data, lambda kind, number: self._functions[number] if kind == "function" else Remote(self, number))
        except (Gone, LookupError, RecursionError) as error:
            self.gone = f"not a message: {error}"
            raise Gone(self.gone) from error


class _Prepare(ast.NodeTransformer):
    """Counts every assert that is run, and takes out imports of the program itself, whose names it collects."""

    def __init__(self) -> None:
        self.checks = 0
        self.imported: dict[str, str] = {}

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        self.checks += 1
        call = ast.Expr(ast.Call(ast.Name(_COUNT, ast.Load()), [], []))
        return [ast.fix_missing_locations(ast.copy_location(call, node)), node]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.stmt:
        if node.module not in _PROGRAM:
            return node
        self.imported.update({alias.asname or alias.name: alias.name for alias in node.names})
        return ast.copy_location(ast.Pass(), node)


def run(tests: str, tester: Tester) -> dict[str, Any]:
    """The verdict. Unusable where the tests are at fault."""
    try:
        tree = ast.parse(tests, "tests.py")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unusable(f"its tests are not Python: {error}") from error
    prepare = _Prepare()
    tree = prepare.visit(tree)
    if not prepare.checks:
        raise Unusable("its tests have no assert")
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    if not any(_is_run(statement, used) for statement in tree.body):
        raise Unusable("none of its asserts is ever run: call the function that holds them")
    _need_modules(tree)
    why = tester.await_program()
    if why:
        return {"passed": False, "why": why}
    of_modules = {
        node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    modules = of_modules & set(sys.stdlib_module_names)
    wanted = used - modules - set(dir(builtins)) - {_COUNT} | set(prepare.imported.values())
    names: dict[str, Any] = {"__name__": "tests", _COUNT: lambda: setattr(tester, "asserts", tester.asserts + 1)}
    try:
        found = tester.names(sorted(wanted))
        names |= {name: importlib.import_module(name) for name in sorted(modules)} | found
        names |= {alias: found[name] for alias, name in prepare.imported.items() if name in found}
        exec(compile(tree, "tests.py", "exec", optimize=0), names)
        for name, function in list(names.items()):
            if name.startswith("test_") and name not in found and callable(function):
                function()
    except _Unsendable as error:
        raise Unusable(str(error)) from error
    except BaseException as error:  # noqa: BLE001  # however a test ends, it has not passed
        return {"passed": False, "why": f"{type(error).__name__}: {str(error)[:500]}"}
    if tester.gone:
        return {"passed": False, "why": tester.gone}
    if not tester.asserts:  # the program's doing: an empty list where the tests go through one
        return {"passed": False, "why": "no assert was run"}
    return {"passed": True, "why": ""}


def _is_run(statement: ast.stmt, used: set[str]) -> bool:
    """Whether the top-level statement holds an assert and is, or holds, what can be run: a function counts where it is named."""
    if not any(isinstance(node, ast.Assert) for node in ast.walk(statement)):
        return False
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    return statement.name.startswith("test_") or statement.name in used


def _need_modules(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                raise Unusable(f"its tests import {name}; the sandbox has the standard library alone")


def main(payload: dict[str, Any]) -> None:
    verdict_pipe = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        verdict = run(payload["tests"], Tester(payload["descriptors"]))
    except Unusable as error:
        verdict = {"unusable": str(error)}
    os.write(verdict_pipe, json.dumps(verdict).encode() + b"\n")
    os._exit(0)  # the program may have left threads of the tests waiting for it
