"""Builds the native modules and names the packages; all else is in pyproject.toml."""

import os
import re
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

CFLAGS = ["-O3", "-fno-semantic-interposition", "-Wall", "-Wno-unused-function"]
if sanitizers := os.environ.get("AIOUNIFY_SANITIZE"):  # "address,undefined": see .ci/sanitize
    CFLAGS[:2] = ["-O1", "-g", "-fno-omit-frame-pointer"]
    for name in ("CFLAGS", "LDFLAGS"):  # of all modules, that of cffi too
        flags = f"-fsanitize={sanitizers} -fno-sanitize-recover=all"
        os.environ[name] = f"{os.environ.get(name, '')} {flags}"
CORE, BENCH = (
    sorted(path.stem for path in Path("aiounify", folder).glob("*.pyx"))
    for folder in ("_core", "bench")
)


def headers(source: Path) -> set[str]:
    """The headers a module includes and those that they include.

    A module is compiled anew when one of them changes; Cython by itself finds the
    first kind only.
    """
    found = set()
    for name in re.findall(r'(?:include|from) "(.+\.h)"', source.read_text()):
        header = source.with_name(name)
        if header.exists():  # else it is the system's
            found |= {str(header), *headers(header)}
    return found


extensions = [
    Extension(
        f"aiounify._core.{name}",
        [f"aiounify/_core/{name}.pyx"],
        depends=sorted(headers(Path(f"aiounify/_core/{name}.pyx"))),
        include_dirs=["aiounify/_core"],
        extra_compile_args=CFLAGS,
    )
    for name in CORE
] + [
    Extension(f"aiounify.bench.{name}", [f"aiounify/bench/{name}.pyx"], extra_compile_args=CFLAGS)
    for name in BENCH
]

setup(
    # the web server is an example, and comes along so that `python -m aiounify serve` has it
    packages=[*find_packages(include=["aiounify*"]), "aiounify._webserver"],
    package_dir={"aiounify._webserver": "examples/webserver"},
    ext_modules=cythonize(extensions, language_level=3),
    cffi_modules=[
        f"{path}:ffibuilder" for path in sorted(Path("aiounify").glob("_kernel*_build.py"))
    ],
)
