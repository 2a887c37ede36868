"""Builds the native modules; everything else about the package is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

CFLAGS = ["-O3", "-fno-semantic-interposition", "-Wall", "-Wno-unused-function"]
CORE = ["scheduler", "reactor", "uring", "epoll"]

extensions = [
    Extension(
        f"aiounify._core.{name}",
        [f"aiounify/_core/{name}.pyx"],
        include_dirs=["aiounify/_core"],
        extra_compile_args=CFLAGS,
    )
    for name in CORE
] + [
    Extension(
        f"aiounify.bench.{name}", [f"aiounify/bench/{name}.pyx"], extra_compile_args=CFLAGS
    )
    for name in ("_loadgen", "_perf")
]

setup(
    ext_modules=cythonize(extensions, language_level=3),
    cffi_modules=["aiounify/_kernel_build.py:ffibuilder"],
)
