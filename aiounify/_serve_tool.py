"""`python -m aiounify serve`: finds the web server and starts it.

The server is an example, a program on top of the package and no part of it: in a checkout it is
in examples/webserver, in a wheel it comes along as `aiounify._webserver`.  Under that name it is
imported in both cases, so that its modules are the same ones however it was found.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["load", "main"]

_NAME = "aiounify._webserver"
_NEEDED = (
    "aiounify serve needs httptools, which reads requests: "
    "pip install httptools (or aiounify[server])"
)


def load() -> ModuleType:
    """The package of the server; ModuleNotFoundError if it is not there."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    if importlib.util.find_spec(_NAME) is not None:
        return importlib.import_module(_NAME)
    source = Path(__file__).parents[1] / "examples" / "webserver" / "__init__.py"
    if not source.exists():
        raise ModuleNotFoundError(f"neither {_NAME} nor {source} is there", name=_NAME)
    spec = importlib.util.spec_from_file_location(
        _NAME, source, submodule_search_locations=[str(source.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    return package


def main(arguments: list[str]) -> int:
    """The command with its arguments; the exit status."""
    if importlib.util.find_spec("httptools") is None:
        print(_NEEDED, file=sys.stderr)
        return 1
    status: int = load().main(arguments)
    return status
