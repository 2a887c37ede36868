"""The interpreter's own asyncio tests, run with this loop in place of the selector loop.

`python -m tests.conformance` runs them by hand, `test_stdlib_suite.py` runs them under pytest, and
`docs/conformance.md` says what is compared with what.
"""
