"""redis-benchmark, which asks servers of Redis's protocol: one run, and its report as numbers.

It is told how many requests to send, not for how long: the first run of a server finds its rate,
and each later one goes by the rate of the one before.
"""

import csv
import os
import resource
import shutil
import subprocess

from aiounify.bench.channel import Measurement

__all__ = ["INSTALL", "available", "load", "parse"]

INSTALL = (
    "redis-benchmark, which asks the key-value servers, is not installed "
    "(Debian, Ubuntu: apt-get install redis-tools)"
)

_FIRST = 2000
# Distinct keys, so that a store's table is more than one entry; and what is stored.
_KEYS, _VALUE = 100_000, 64

_rates: dict[tuple[str, int, str], float] = {}


def available() -> bool:
    return shutil.which("redis-benchmark") is not None


def load(host: str, port: int, request: str, connections: int, seconds: float) -> Measurement:
    """Ask with one command (`set`, `get`) for about so long; ValueError if it did not work."""
    key = host, port, request
    if key not in _rates:
        first = _run(host, port, request, connections, _FIRST)
        _rates[key] = first["ops"] / first["seconds"]
    found = _run(host, port, request, connections, max(_FIRST, round(_rates[key] * seconds)))
    _rates[key] = found["ops"] / found["seconds"]
    return found


def _run(host: str, port: int, request: str, connections: int, count: int) -> Measurement:
    before = _cpu()
    done = subprocess.run(
        [
            "redis-benchmark",
            *("-h", host, "-p", str(port), "-t", request, "-c", str(connections)),
            *("-n", str(count), "-d", str(_VALUE), "-r", str(_KEYS), "--csv"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | {"LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise ValueError(
            f"redis-benchmark ended with status {done.returncode}: {done.stdout.strip()}"
        )
    measured = parse(done.stdout, count)
    measured["client_cpu"] = _cpu() - before
    return measured


def parse(text: str, count: int) -> Measurement:
    """The report with --csv of so many requests."""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith('"test"')]
    if not heads or len(lines) <= heads[0] + 1:
        raise ValueError(f"redis-benchmark: {text.strip() or 'no report'}")
    trouble = [line for line in lines if "rror" in line]
    if trouble:
        raise ValueError(f"redis-benchmark: {trouble[0].strip()}")
    found = next(csv.DictReader(lines[heads[0] :]))
    return {
        "ops": count,
        "seconds": count / float(found["rps"]),
        "p50": float(found["p50_latency_ms"]) / 1e3,
        "p99": float(found["p99_latency_ms"]) / 1e3,
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
