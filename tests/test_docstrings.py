"""Public docstrings give shapes and errors: what a caller cannot see from a signature."""

import ast
from collections.abc import Iterator

import pytest

from tests.source_rules import modules_of_the_project

MODULES = modules_of_the_project()
ARRAYS = ("ndarray", "torch.Tensor")
NESTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def public_functions(source: str) -> Iterator[ast.FunctionDef]:
    """Functions of a module and methods of its classes; a main's errors are its exit codes."""
    tree = ast.parse(source)
    for scope in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
        for node in scope.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "main":
                yield node


def own_statements(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below a node but what functions inside it do."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, NESTED):
            yield child
            yield from own_statements(child)


def omissions(source: str) -> list[str]:
    found = []
    for function in public_functions(source):
        text = ast.get_docstring(function) or ""
        # A bare raise passes on what somebody else raised.
        raises = any(
            isinstance(node, ast.Raise) and node.exc is not None for node in own_statements(function)
        )
        if raises and "Raises:" not in text:
            found.append(f"{function.lineno} {function.name}: raises, and does not say what")
        arguments = [*function.args.args, *function.args.kwonlyargs]
        types = [argument.annotation for argument in arguments] + [function.returns]
        handles_arrays = any(name in ast.unparse(kind) for kind in types if kind for name in ARRAYS)
        if handles_arrays and "[" not in text and "any shape" not in text:
            found.append(f"{function.lineno} {function.name}: takes or gives arrays of untold shape")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_public_docstring_gives_shapes_and_errors(module):
    assert omissions(MODULES[module]) == []


@pytest.mark.parametrize(
    ("source", "n_omissions"),
    [
        ('def f(x: np.ndarray) -> int:\n    """A number."""\n    raise ValueError(x)\n', 2),
        ('def f(x: "torch.Tensor") -> int:\n    """A number of x [n]."""\n    raise\n', 0),
        ('class A:\n    def f(self) -> np.ndarray:\n        """Some."""\n        return g()\n', 1),
        (
            'def f() -> int:\n    """One."""\n    def g(x: np.ndarray):\n        raise E\n    return g\n',
            0,
        ),
        ("def _f(x: np.ndarray) -> int:\n    raise ValueError(x)\n", 0),
    ],
)
def test_an_omission_would_be_found(source, n_omissions):
    assert len(omissions(source)) == n_omissions
