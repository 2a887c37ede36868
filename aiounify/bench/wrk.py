"""wrk, the load generator of the HTTP rows: one run of it, and its report as numbers.

It is a program of its own, not a package: `INSTALL` says where it comes from.  A run lasts whole
seconds and opens its connections anew.
"""

import math
import re
import resource
import shutil
import subprocess

from aiounify.bench.channel import Measurement

__all__ = ["INSTALL", "available", "load", "parse"]

INSTALL = (
    "wrk, which asks the HTTP servers, is not installed "
    "(Debian, Ubuntu: apt-get install wrk; others: https://github.com/wg/wrk)"
)

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TOTAL = re.compile(r"^\s*(\d+) requests in ([\d.]+)(us|ms|s|m|h),", re.MULTILINE)
_SHARE = re.compile(r"^\s*(50|99)%\s+([\d.]+)(us|ms|s|m|h)\s*$", re.MULTILINE)
_TROUBLE = re.compile(r"^\s*((?:Socket errors|Non-2xx or 3xx responses):.*)$", re.MULTILINE)


def available() -> bool:
    return shutil.which("wrk") is not None


def load(host: str, port: int, path: str, connections: int, seconds: float) -> Measurement:
    """Ask for a path for so long; raises ValueError if answers were missing or wrong."""
    before = _cpu()
    done = subprocess.run(
        [
            "wrk",
            "--threads=1",
            f"--connections={connections}",
            f"--duration={max(1, math.ceil(seconds))}s",
            "--timeout=5s",
            "--latency",
            f"http://{host}:{port}{path}",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(f"wrk ended with status {done.returncode}: {done.stdout.strip()}")
    measured = parse(done.stdout)
    measured["client_cpu"] = _cpu() - before
    return measured


def parse(text: str) -> Measurement:
    """wrk's report; it has no format for programs."""
    trouble = _TROUBLE.search(text)
    if trouble:
        raise ValueError(f"wrk: {trouble[1]}")
    total = _TOTAL.search(text)
    if total is None or int(total[1]) == 0:
        raise ValueError("wrk got no answers")
    shares = {share: float(value) * _UNITS[unit] for share, value, unit in _SHARE.findall(text)}
    return {
        "ops": int(total[1]),
        "seconds": float(total[2]) * _UNITS[total[3]],
        "p50": shares["50"],
        "p99": shares["99"],
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
