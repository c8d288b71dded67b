"""Runs the examples of a docstring, as an interactive Python would; ``await`` may stand where it may in a notebook."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import traceback
from collections.abc import Callable
from typing import Any

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def has_example(docstring: str | None) -> bool:
    """Whether there is anything to run."""
    return bool(doctest.DocTestParser().get_examples(docstring or ""))


def names_in(docstring: str) -> set[str]:
    """The names that the examples use and do not make themselves first."""
    found: set[str] = set()
    made: set[str] = set()
    for example in doctest.DocTestParser().get_examples(docstring):
        tree = ast.parse(example.source)
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        found |= {node.id for node in nodes if isinstance(node.ctx, ast.Load)} - made
        made |= {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    return found


def run_example(name: str, docstring: str, names: dict[str, Any], wait: Callable[[Any], Any] = asyncio.run) -> str:
    """Run the examples one after the other with these names; what went wrong, empty if all went as it says there.

    ``wait`` runs what awaits something.
    """
    checker = doctest.OutputChecker()
    for example in doctest.DocTestParser().get_examples(docstring, name):
        code = compile(example.source, name, "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        said, raised = io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(said):
                result = eval(code, names)
                if inspect.iscoroutine(result):
                    wait(result)
        except Exception as error:
            raised = "".join(traceback.format_exception_only(error))
            if example.exc_msg is None:
                return f"{example.source}raised {traceback.format_exc()}"
        if example.exc_msg is not None:
            if not checker.check_output(example.exc_msg, raised, FLAGS):
                return f"{example.source}raised {raised or 'nothing'}, not {example.exc_msg}"
        elif not checker.check_output(example.want, said.getvalue(), FLAGS):
            return f"{example.source}printed {said.getvalue()}, not {example.want}"
    return ""
