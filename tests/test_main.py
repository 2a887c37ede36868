"""`python -m aiounify`, and every code block of the README."""

import ast
import asyncio
import contextlib
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import NO_URING, complaints

import aiounify

ROOT = Path(__file__).parents[1]
PACKAGE = Path(aiounify.__file__).parent


def environment(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("AIOUNIFY_BACKEND", "PYTHONPATH")}
    return {**clean, "PYTHONPATH": str(PACKAGE.parent), **more}


def python(*args: object, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


# -- the features ------------------------------------------------------------------


def test_features_for_a_person():
    done = python("-m", "aiounify")
    assert (done.returncode, done.stderr) == (0, "")
    first, blank, *rows = done.stdout.splitlines()
    assert first.startswith("io_uring: ")
    assert first.endswith("using epoll" if NO_URING else "using io_uring")
    assert blank == ""
    table = aiounify.features()
    assert [row.split()[0] for row in rows] == list(table)
    for row, (name, feature) in zip(rows, table.items(), strict=True):
        assert row.split(maxsplit=2) == [name, "yes" if feature.on else "no", feature.detail]
    assert len({re.search(r" (yes|no) ", row + " ").start() for row in rows}) == 1  # aligned


def test_features_with_a_forced_backend():
    done = python("-m", "aiounify", AIOUNIFY_BACKEND="epoll")
    assert done.stdout.splitlines()[0].endswith("; using epoll (AIOUNIFY_BACKEND=epoll)")


# -- the command line ----------------------------------------------------------------


def test_version():
    for option in ("--version", "-V"):
        done = python("-m", "aiounify", option)
        assert (done.returncode, done.stdout) == (0, f"aiounify {aiounify.__version__}\n")


def test_help():
    for option in ("--help", "-h"):
        done = python("-m", "aiounify", option)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: python -m aiounify ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frobnicate"], "unknown option --frobnicate"),
        (["-x", "program.py"], "unknown option -x"),
        (["-m"], "-m needs the name of a module"),
        (
            ["frobnicate"],
            "'frobnicate' is neither a file nor a command (the commands are: bench, watch, serve)",
        ),
    ],
)
def test_unknown_things(tmp_path, arguments, message):
    done = python("-m", "aiounify", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == f"aiounify: {message}"
    assert "usage: python -m aiounify" in done.stderr


def test_bench():
    done = python("-m", "aiounify", "bench", "list")
    assert done.returncode == 0
    assert "call_soon-chain" in done.stdout
    assert python("-m", "aiounify", "bench", "no such row").returncode == 2


# -- output that nobody reads: `python -m aiounify | head -2` -------------------------


def unread(*args: object, stream: str = "stdout", cwd: Path | None = None):
    """The status of a command one of whose streams has no reader, and what the other one got."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer},
            timeout=50,
            check=False,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr if stream == "stdout" else done.stdout


@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["", "unbuffered"])
@pytest.mark.parametrize(
    ("command", "stream"),
    [
        (["aiounify"], "stdout"),
        (["aiounify", "--help"], "stdout"),
        (["aiounify", "--version"], "stdout"),
        (["aiounify", "bench", "list"], "stdout"),
        (["aiounify.bench", "list"], "stdout"),
        (["aiounify", "--frobnicate"], "stderr"),
        (["aiounify", "bench", "no such row"], "stderr"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_output_without_a_reader(tmp_path, command, stream, unbuffered):
    """Killed by SIGPIPE without a word, as the tools of the system are."""
    status, rest = unread(*unbuffered, "-m", *command, stream=stream, cwd=tmp_path)
    assert rest == b""
    assert status == -signal.SIGPIPE


def test_help_of_the_benchmark_without_a_reader():
    """argparse itself ignores that its help cannot be written."""
    status, rest = unread("-m", "aiounify", "bench", "--help")
    assert rest == b""
    assert status in (0, -signal.SIGPIPE)


def test_first_lines_of_the_output():
    """`| head -2`: what was read before the reader went is what it is without head."""
    command = f"{shlex.quote(sys.executable)} -u -m aiounify | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    *lines, status = done.stdout.splitlines()
    assert lines == python("-m", "aiounify").stdout.splitlines()[:2]
    # 0 if all of it was in the pipe before head went
    assert status in ("0", "141")
    assert done.stderr == ""


@pytest.mark.parametrize("code", ["print(1)", "print(1, flush=True)"])
def test_a_program_whose_output_nobody_reads_ends_as_under_python(tmp_path, code):
    (tmp_path / "program.py").write_text(code)
    expected = unread("program.py", cwd=tmp_path)
    assert unread("-m", "aiounify", "program.py", cwd=tmp_path) == expected
    assert b"BrokenPipeError" in expected[1]


def test_another_pipe_that_breaks_is_an_error():
    """Whoever reads the output wants to know; only a tool without a reader is silent."""
    code = (
        "import os; from aiounify._pipe_end import run_tool\n"
        "def tool(_):\n"
        "    reader, writer = os.pipe(); os.close(reader); os.write(writer, b'x')\n"
        "run_tool(tool, [])"
    )
    done = python("-c", code)
    assert done.returncode == 1
    assert done.stderr.endswith("BrokenPipeError: [Errno 32] Broken pipe\n")


# -- running programs: in every respect as the interpreter does it ---------------------

REPORT = """
import atexit, asyncio, json, pickle, sys, threading

class Thing:
    pass

def facts():
    main = sys.modules["__main__"]
    spec = __spec__ and (__spec__.name, __spec__.origin, __spec__.parent)
    pickle.loads(pickle.dumps(Thing()))  # needs the right __main__
    names = {*globals()} - {"__file__", "__cached__"}  # python takes those away at the end
    return [sys.argv, sys.path[0], __name__, __package__, spec, sorted(names),
            main.__dict__ is globals(), __doc__]

async def main():
    print(__file__, __cached__, json.dumps(facts()))
    print(type(asyncio.get_running_loop()).__module__.split(".")[0], file=sys.stderr)

asyncio.run(main())
atexit.register(lambda: print(json.dumps(facts())))
threading.Timer(0.05, lambda: print(json.dumps(facts()))).start()
"""


@pytest.fixture
def programs(tmp_path):
    """A folder with the same program as a script, a module, a package and a directory."""
    (tmp_path / "script.py").write_text(REPORT)
    for folder in ("package", "package/inner", "directory"):
        (tmp_path / folder).mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/inner/__init__.py").write_text("")
    for name in ("package/module.py", "package/__main__.py", "package/inner/__main__.py"):
        (tmp_path / name).write_text(REPORT)
    (tmp_path / "directory/__main__.py").write_text(REPORT)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link.py").symlink_to("../script.py")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["script.py", "a", "-m", "--help"],
        ["./script.py"],
        ["elsewhere/../script.py", "bench"],
        ["elsewhere/link.py"],
        ["directory", "a"],
        ["-m", "script", "a", "-c"],
        ["-m", "package", "a"],
        ["-m", "package.module"],
        ["-m", "package.inner"],
    ],
    ids=" ".join,
)
def test_a_program_sees_what_it_sees_under_python(programs, command):
    expected = python(*command, cwd=programs)
    done = python("-m", "aiounify", *command, cwd=programs)
    assert done.returncode == expected.returncode == 0, done.stderr
    assert done.stdout == expected.stdout
    assert expected.stderr == "asyncio\n"
    assert done.stderr == "aiounify\n"


def test_safe_path(programs):
    expected = python("-P", "script.py", cwd=programs)
    done = python("-P", "-m", "aiounify", "script.py", cwd=programs)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected.stdout


@pytest.mark.parametrize(
    "code",
    [
        "",
        "import sys; sys.exit()",
        "import sys; sys.exit(7)",
        "raise SystemExit('a message')",
        "def f():\n    1 / 0\nf()",
        "raise KeyboardInterrupt",
        "try:\n    1 / 0\nexcept Exception as e:\n    raise OSError(5, 'x') from e",
        "def f(:",
        "import nothing_of_this_name",
        "import sys\nsys.excepthook = lambda *a: print('hook', a[0], a[2].tb_lineno)\n1 / 0",
        "import os; os.abort()",
        "import warnings; warnings.warn('careful')",
        "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    ],
)
def test_the_end_of_a_program_is_that_under_python(tmp_path, code):
    (tmp_path / "program.py").write_text(code)

    def run(*command: str) -> tuple[int, str, str]:
        done = python(*command, cwd=tmp_path)
        return done.returncode, done.stdout, re.sub("0x[0-9a-f]+", "0x", done.stderr)

    assert run("-m", "aiounify", "program.py") == run("program.py")


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "nothing_of_this_name"],
        ["-m", "asyncio.nothing"],
        ["-m", "nothing.of.this.name"],
        ["-m", "xml"],
        ["empty"],
    ],
    ids=" ".join,
)
def test_programs_that_are_not_there(tmp_path, command):
    (tmp_path / "empty").mkdir()
    expected = python(*command, cwd=tmp_path)
    done = python("-m", "aiounify", *command, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (expected.returncode, "", expected.stderr)


def test_unreadable_script(tmp_path):
    (tmp_path / "loop.py").symlink_to("loop.py")
    done = python("-m", "aiounify", "loop.py", cwd=tmp_path)
    assert done.returncode == 2


def test_compiled_script(tmp_path):
    import py_compile

    (tmp_path / "program.py").write_text("import sys; print(__file__, sys.argv)")
    py_compile.compile(str(tmp_path / "program.py"), str(tmp_path / "program.pyc"))
    expected = python("program.pyc", "a", cwd=tmp_path)
    done = python("-m", "aiounify", "program.pyc", "a", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, "")


EVERY_WAY = """
import asyncio, sys, warnings
warnings.simplefilter("ignore")

async def name():
    return type(asyncio.get_running_loop()).__module__

print(asyncio.run(name()))
with asyncio.Runner() as runner:
    print(runner.run(name()))
loop = asyncio.new_event_loop()
print(loop.run_until_complete(name()))
loop.close()
if sys.version_info >= (3, 12):
    print(asyncio.run(name(), loop_factory=None))
if sys.version_info >= (3, 13):
    print(asyncio.run(name(), loop_factory=asyncio.EventLoop))
"""


def test_every_way_to_a_loop(tmp_path):
    (tmp_path / "program.py").write_text(EVERY_WAY)
    done = python("-W", "error", "-m", "aiounify", "program.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()) == {"aiounify.loop"}


def test_a_python_without_policies(tmp_path):
    """Python 3.16 will have none: there the functions themselves are replaced."""
    (tmp_path / "program.py").write_text(
        "import asyncio, sys\n"
        "real, sys.version_info = sys.version_info, (3, 16)\n"
        "from aiounify.__main__ import install\n"
        "install()\n"
        "sys.version_info = real\n"
        "async def name():\n"
        "    return type(asyncio.get_running_loop()).__module__\n"
        "print(asyncio.run(name()))\n"
        "loop = asyncio.new_event_loop()\n"
        "print(loop.run_until_complete(name()))\n"
        "loop.close()\n"
    )
    done = python("program.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "aiounify.loop\n" * 2


def test_backend_of_a_program(tmp_path, backend):
    (tmp_path / "program.py").write_text(
        "import asyncio\n"
        "async def main():\n"
        "    print(asyncio.get_running_loop().backend)\n"
        "asyncio.run(main())\n"
    )
    done = python("-m", "aiounify", "program.py", cwd=tmp_path, AIOUNIFY_BACKEND=backend)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{backend}\n", "")


# -- stubs --------------------------------------------------------------------------


def test_kernel_stub_names_every_function():
    """stubtest cannot look into cffi's libraries; _kernel.pyi has to follow _kernel_build.py."""
    from aiounify import _kernel

    tree = ast.parse((PACKAGE / "_kernel.pyi").read_text())
    (lib,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    functions = {node.name for node in lib.body if isinstance(node, ast.FunctionDef)}
    values = {node.target.id for node in lib.body if isinstance(node, ast.AnnAssign)}
    assert functions | values == set(dir(_kernel.lib))


# -- the README ------------------------------------------------------------------------

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON_BLOCKS = [text for language, text in BLOCKS if language == "python"]
COMMANDS = [
    re.sub(r"\s+#.*", "", line.removeprefix("$ "))
    for language, text in BLOCKS
    if language == "console"
    for line in text.splitlines()
]
APP = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    import asyncio
    body = type(asyncio.get_running_loop()).__module__.encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


def block(marker: str) -> str:
    """The one Python block that contains the marker."""
    (found,) = (text for text in PYTHON_BLOCKS if marker in text)
    return found


def needs(*modules: str) -> None:
    for name in modules:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], folder: Path, port: int):
    """Run a server for the body of the with statement, which gets its first answer."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    answer = None
    deadline = time.monotonic() + 30
    try:
        while answer is None and time.monotonic() < deadline and process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                    answer = response.read().decode()
            except OSError:
                time.sleep(0.05)
        yield answer
    finally:
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:  # with its worker processes
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
    assert answer is not None, output


def test_every_block_of_the_readme_is_known():
    """A new block or command needs a test below."""
    assert {language for language, _ in BLOCKS} == {"python", "console"}
    assert len(PYTHON_BLOCKS) == len(README_PROGRAMS) + 3
    assert COMMANDS == [
        "make run",
        "make test",
        "make serve",
        "pip install .",
        "python -m aiounify",
        "python -m aiounify program.py argument",
        "python -m aiounify -m package.module argument",
        "uvicorn app:app --loop aiounify:new_event_loop",
    ]


README_PROGRAMS = {
    "aiounify.watch(": r"(changed: <Change \w+ './note.txt'>\n)+ended: 0\n",
    "asyncio.Runner(": None,
    "import anyio": "",
    'backend="epoll"': r"epoll\n",
}


@pytest.mark.parametrize("marker", README_PROGRAMS)
def test_readme_programs(tmp_path, marker):
    if "anyio" in marker:
        needs("anyio")
    (tmp_path / "program.py").write_text(block(marker))
    done = python("-X", "dev", "program.py", cwd=tmp_path)
    assert (done.returncode, complaints(done.stderr)) == (0, []), done.stderr
    expected = README_PROGRAMS[marker]
    if expected is None:
        expected = ("epoll\n" if NO_URING else "uring\n") * 3
    assert re.fullmatch(expected, done.stdout), done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python ")])
def test_readme_python_commands(tmp_path, command):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    for name in ("program.py", "package/module.py"):
        (tmp_path / name).write_text(EVERY_WAY)
    done = python(*shlex.split(command)[1:], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    if command != "python -m aiounify":
        assert set(done.stdout.splitlines()) == {"aiounify.loop"}


def test_readme_make_and_pip():
    """These make virtual environments, which .ci/run does; here: the targets exist."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test", "serve"} <= set(targets)
    assert (ROOT / "pyproject.toml").exists()


def test_readme_uvicorn(tmp_path):
    needs("uvicorn")
    (tmp_path / "app.py").write_text(APP)
    (command,) = (c for c in COMMANDS if c.startswith("uvicorn"))
    port = free_port()
    arguments = [sys.executable, "-m", *shlex.split(command), "--port", str(port)]
    with server(arguments, tmp_path, port) as answer:
        assert answer == "aiounify.loop"


def test_readme_gunicorn(tmp_path):
    needs("gunicorn", "uvicorn_worker")
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "workers.py").write_text(block("# workers.py"))
    match = re.search(r"`(gunicorn .*)`", README)
    assert match is not None
    port = free_port()
    arguments = [sys.executable, "-m", *shlex.split(match[1]), "-b", f"127.0.0.1:{port}"]
    with server(arguments, tmp_path, port) as answer:
        assert answer == "aiounify.loop"


def test_readme_aiohttp(tmp_path):
    needs("aiohttp")
    port = free_port()
    text = block("# server.py")
    assert "port=8080" in text
    (tmp_path / "server.py").write_text(text.replace("port=8080", f"port={port}"))
    with server([sys.executable, "server.py"], tmp_path, port) as answer:
        assert answer in ("from uring", "from epoll")


def test_readme_pytest_asyncio(tmp_path):
    (tmp_path / "conftest.py").write_text(block("# conftest.py"))
    (tmp_path / "test_it.py").write_text(
        "import asyncio, aiounify, pytest\n"
        "@pytest.mark.asyncio\n"
        "async def test_loop():\n"
        "    assert isinstance(asyncio.get_running_loop(), aiounify.EventLoop)\n"
    )
    done = python("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_links_of_the_documents():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_documented_names_exist():
    loop = aiounify.new_event_loop()
    try:
        for name in re.findall(r"`loop\.(\w+)", README):
            assert hasattr(loop, name), name
    finally:
        loop.close()
    for name in re.findall(r"`aiounify\.(\w+)", README):
        # a module that nobody imported is no attribute yet
        assert hasattr(aiounify, name) or importlib.util.find_spec(f"aiounify.{name}"), name
    assert asyncio.iscoroutinefunction(aiounify.run) is False
