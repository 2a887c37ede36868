"""`python -m aiounify`: what this kernel offers, running programs on the loop, the benchmark.

A program is run as the interpreter itself would run it: in a module `__main__` of its own that
stays in place until the process ends, with its own sys.argv and sys.path[0], with tracebacks that
begin at its first line, and with the same exit status.  runpy does most of that, but puts
the old `__main__` back while threads and atexit functions still run, and shows in tracebacks.
"""

from __future__ import annotations

import asyncio
import builtins
import importlib.util
import os
import pkgutil
import sys
import types
import warnings
from importlib.machinery import ModuleSpec, SourceFileLoader, SourcelessFileLoader
from typing import NamedTuple, NoReturn

import aiounify
from aiounify._pipe_end import run_tool
from aiounify.features import backend_line

USAGE = """\
usage: python -m aiounify                        show what this kernel offers the loop
       python -m aiounify SCRIPT.py [ARG ...]    run a program with the loop installed
       python -m aiounify -m MODULE [ARG ...]    run a module with the loop installed
       python -m aiounify bench [ARG ...]        compare event loops (bench --help)
       python -m aiounify watch PATH [...]       show what changes, run a command (watch --help)
       python -m aiounify serve [DIR] [...]      serve a directory over HTTP (serve --help)
       python -m aiounify --version
       python -m aiounify --help

A program that is run this way gets aiounify's loop from asyncio.run(), asyncio.Runner() and
asyncio.new_event_loop(), unless it asks for another one itself.

environment:
  AIOUNIFY_BACKEND   auto (default), uring or epoll
"""

COMMANDS = ("bench", "watch", "serve")


def install() -> None:
    """Make aiounify's loop the default of this process.

    Where asyncio has event loop policies (up to Python 3.15) they decide, so that
    a program that sets its own still gets its own.  asyncio.EventLoop, the platform's
    best loop since 3.13, is replaced everywhere.
    """
    if sys.version_info < (3, 16):
        from aiounify.policy import EventLoopPolicy

        with warnings.catch_warnings():
            # Policies are deprecated from 3.14 on: that is our business, not the program's.
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.set_event_loop_policy(EventLoopPolicy())
    else:
        vars(asyncio.events)["new_event_loop"] = aiounify.new_event_loop
        vars(asyncio)["new_event_loop"] = aiounify.new_event_loop
    if sys.version_info >= (3, 13):
        vars(asyncio)["EventLoop"] = aiounify.EventLoop


# -- finding a program -------------------------------------------------------------


class _Program(NamedTuple):
    """What is to be run, and as which `__main__`."""

    code: types.CodeType
    module: types.ModuleType


class _NotFoundError(Exception):
    """What cannot be run, in the interpreter's own words, and the exit status it would give."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _main_module(**attributes: object) -> types.ModuleType:
    module = types.ModuleType("__main__")
    vars(module).update(__builtins__=builtins, **attributes)
    if sys.version_info < (3, 14):
        module.__annotations__ = {}
    return module


def _program(spec: ModuleSpec) -> _Program:
    """The program in a module that was found, with the attributes that `python -m` gives it."""
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code is not None else None
    if code is None:
        raise _NotFoundError(f"No code object available for {spec.name}", 1)
    module = _main_module(
        __file__=spec.origin,
        __cached__=spec.cached,
        __loader__=spec.loader,
        __package__=spec.parent,
        __spec__=spec,
    )
    return _Program(code, module)


def _find_module(name: str, package: str = "") -> _Program:
    """`-m NAME`: a module, or a package that has a `__main__`."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, AttributeError, TypeError, ValueError) as exc:
        why = f"Error while finding module specification for {name!r} ({type(exc).__name__}: {exc})"
        raise _NotFoundError(why, 1) from None
    if spec is None or spec.loader is None:
        directly = f"; {package!r} is a package and cannot be directly executed" if package else ""
        raise _NotFoundError(f"No module named {name}{directly}", 1)
    if spec.submodule_search_locations is not None:
        return _find_module(f"{name}.__main__", package=name)
    return _program(spec)


def _find_script(path: str) -> _Program:
    """A source file, a compiled one, or a directory or zip archive with a `__main__.py`.

    sys.path[0], which `-m` made the current directory, becomes the program's.
    """
    # Paths as the interpreter has them: absolute in __file__ but otherwise as they were
    # given, links resolved in sys.path.
    file = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118
    importer = pkgutil.get_importer(file)
    if not sys.flags.safe_path:
        del sys.path[0]
    if importer is not None:
        sys.path.insert(0, file)
        spec = importer.find_spec("__main__")
        if spec is None:
            raise _NotFoundError(f"can't find '__main__' module in {file!r}", 1)
        return _program(spec)
    if not sys.flags.safe_path:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))  # noqa: PTH120
    loader: SourceFileLoader | SourcelessFileLoader
    try:
        if path.endswith(".pyc"):
            loader = SourcelessFileLoader("__main__", file)
            code = loader.get_code("__main__")
            assert code is not None
        else:
            loader = SourceFileLoader("__main__", file)
            # get_code() would leave a compiled copy in __pycache__
            code = loader.source_to_code(loader.get_data(file), file)
    except OSError as exc:
        raise _NotFoundError(
            f"can't open file {file!r}: [Errno {exc.errno}] {exc.strerror}", 2
        ) from None
    return _Program(code, _main_module(__file__=file, __loader__=loader, __cached__=None))


# -- running it --------------------------------------------------------------------


def _trimmed(traceback: types.TracebackType | None) -> types.TracebackType | None:
    """The traceback without the frames of this file and of the import system before it."""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals is not globals() and not frame.f_code.co_filename.startswith(
            "<frozen importlib"
        ):
            break
        traceback = traceback.tb_next
    return traceback


def _end_by(exc: BaseException) -> NoReturn:
    """End the process as an exception that nothing caught does."""
    exc.__traceback__ = _trimmed(exc.__traceback__)
    sys.excepthook(type(exc), exc, exc.__traceback__)
    if isinstance(exc, KeyboardInterrupt):
        # The interpreter then kills itself by SIGINT, which callers can tell from status 1.
        sys.excepthook = lambda *_: None
        raise exc
    sys.exit(1)


def _run(arguments: list[str]) -> NoReturn:
    """Run `SCRIPT [ARG ...]` or `-m MODULE [ARG ...]` and end the process."""
    install()
    try:
        if arguments[0] == "-m":
            sys.argv[:] = arguments  # what a package sees that is imported on the way
            program = _find_module(arguments[1])
            sys.argv[:] = [program.module.__file__ or arguments[1], *arguments[2:]]
        else:
            sys.argv[:] = arguments
            program = _find_script(arguments[0])
        sys.modules["__main__"] = program.module
        exec(program.code, vars(program.module))
    except _NotFoundError as exc:
        print(f"{sys.executable}: {exc}", file=sys.stderr)
        sys.exit(exc.status)
    except SystemExit:
        raise
    except BaseException as exc:
        _end_by(exc)
    sys.exit()


# -- the command line ----------------------------------------------------------------


def _show_features() -> None:
    print(backend_line())
    print()
    table = aiounify.features()
    width = max(map(len, table))
    for name, (on, detail) in table.items():
        print(f"{name:<{width}}  {'yes' if on else 'no':<3}  {detail}")


def main(arguments: list[str]) -> int:
    """The command, with its arguments; does not return if it runs a program."""
    if _names_a_program(arguments):
        _run(arguments)
    return run_tool(_answer, arguments)


def _names_a_program(arguments: list[str]) -> bool:
    """Whether it is a program that is to be run, and not a command of this one's own."""
    if not arguments:
        return False
    first = arguments[0]
    if first == "-m":
        return len(arguments) > 1
    # Not pathlib, whose "" is the current directory.
    return first not in COMMANDS and not first.startswith("-") and os.path.exists(first)  # noqa: PTH110


def _answer(arguments: list[str]) -> int:
    """Anything but running a program."""
    if not arguments:
        _show_features()
        return 0
    first = arguments[0]
    if first in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if first in ("-V", "--version"):
        print(f"aiounify {aiounify.__version__}")
        return 0
    if first == "bench":
        from aiounify import bench

        return bench.main(arguments[1:])
    if first == "watch":
        from aiounify import _watch_tool

        return _watch_tool.main(arguments[1:])
    if first == "serve":
        from aiounify import _serve_tool

        return _serve_tool.main(arguments[1:])
    if first == "-m":
        return _refuse("-m needs the name of a module")
    if first.startswith("-"):
        return _refuse(f"unknown option {first}")
    commands = ", ".join(COMMANDS)
    return _refuse(f"{first!r} is neither a file nor a command (the commands are: {commands})")


def _refuse(why: str) -> int:
    print(f"aiounify: {why}\n\n{USAGE}", end="", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
