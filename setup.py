"""Builds the native modules; everything else about the package is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

CFLAGS = ["-O2", "-fno-semantic-interposition", "-Wall", "-Wno-unused-function"]
CORE = ["scheduler", "reactor", "uring", "epoll"]

extensions = [
    Extension(
        f"aiounify._core.{name}",
        [f"aiounify/_core/{name}.pyx"],
        include_dirs=["aiounify/_core"],
        extra_compile_args=CFLAGS,
    )
    for name in CORE
]

setup(
    ext_modules=cythonize(extensions, language_level=3),
    cffi_modules=["aiounify/_kernel_build.py:ffibuilder"],
)
