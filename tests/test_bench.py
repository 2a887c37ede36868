"""The benchmark command: its arguments, its arithmetic, and one real run without timing claims."""

import asyncio
import dataclasses
import errno
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from itertools import pairwise
from pathlib import Path

import pytest

from aiounify import bench
from aiounify.bench import (
    callgrind,
    cli,
    document,
    machine,
    program,
    redisbench,
    registry,
    report,
    rows,
    runner,
    stats,
    wrk,
)
from aiounify.bench.channel import Channel, ClosedError, Command, Measurement, Reply
from aiounify.bench.child import Child, ChildError
from aiounify.bench.counters import Counters, memory_used
from aiounify.bench.rows import IdleRow, LoopRow, ServerRow, ServingRow
from aiounify.bench.rows.base import Program, Run
from aiounify.bench.rows.ports import free_port
from aiounify.bench.runner import Options, RowResult
from aiounify.bench.worker import operations

OPTIONS = Options(rounds=2, window=0.01, server_cpu=0, client_cpu=0)

needs_loadgen = pytest.mark.skipif(
    importlib.util.find_spec("aiounify.bench._loadgen") is None,
    reason="the load generator is not built",
)


def window(ops: int, seconds: float, cpu: float = 0.0, **more: int) -> Measurement:
    measured: Measurement = {
        "ops": ops,
        "seconds": seconds,
        "cpu": cpu,
        "user": cpu,
        "system": 0.0,
        "instructions_user": more.get("instructions_user"),
        "instructions": more.get("instructions"),
    }
    return measured


# Registry and rows


def test_default_loops_and_peers_make_up_the_registry() -> None:
    assert set(registry.DEFAULT).isdisjoint(registry.PEERS)
    assert {*registry.DEFAULT, *registry.PEERS} == set(registry.LOOPS)
    assert registry.BASE in registry.DEFAULT


def test_asyncio_column_is_asyncios_own_loop() -> None:
    loop = registry.LOOPS["asyncio"].new()
    try:
        assert type(loop).__module__.startswith("asyncio.")
    finally:
        loop.close()


def test_libraries_of_files_are_columns_of_rows_of_files_only() -> None:
    assert registry.serves("files-turbofile", ("files", "lateness"))
    assert not registry.serves("files-turbofile", ("call_soon",))
    assert registry.serves("rloop", ("call_soon",))
    assert registry.serves("rloop", ("files",))


def test_columns_of_c_are_in_the_rows_that_c_does() -> None:
    for name, column in (("file-stat-x64", "files-c"), ("file-direct-x64", "files-c-uring")):
        assert registry.serves(column, rows.ROWS[name].groups)
    assert not registry.serves("files-c", rows.ROWS["file-direct-x64"].groups)
    assert not registry.serves("files-c-aio", rows.ROWS["file-stat-x64"].groups)
    assert not registry.serves("files-c", rows.ROWS["file-late-x64"].groups)


def test_missing_library_of_files_is_an_import_error() -> None:
    missing = dataclasses.replace(
        registry.LOOPS["files-urio"], options={"library": "aiounify_no_such_module"}
    )
    with pytest.raises(ModuleNotFoundError):
        missing.new()


def test_missing_module_is_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        registry.Loop("none", "aiounify_no_such_module").new()


def test_every_row_says_what_it_is() -> None:
    for name, row in rows.ROWS.items():
        assert name == row.name
        assert row.summary.endswith(".")
        assert row.unit
        assert row.groups
        assert isinstance(row, LoopRow | ServingRow)


def test_names_of_rows_and_groups_do_not_collide() -> None:
    shared = set(rows.ROWS) & set(rows.GROUPS)
    # A group may have the name of its only row.
    assert all(rows.GROUPS[name] == [name] for name in shared)


def test_select_takes_rows_and_groups_in_table_order() -> None:
    assert rows.select(["all"]) == list(rows.ROWS.values())
    chosen = [row.name for row in rows.select(["timers", "task", "call_soon"])]
    order = list(rows.ROWS)
    assert {"task", "call_soon-chain", "timer-fire"} <= set(chosen)
    assert all(order.index(a) < order.index(b) for a, b in pairwise(chosen))


def test_selection_without_names_is_a_part_of_all_in_every_group() -> None:
    chosen = rows.select([])
    assert [row.name for row in chosen] == list(rows.DEFAULT)
    assert len(chosen) < len(rows.ROWS) / 2
    groups = {group for row in chosen for group in row.groups}
    assert groups | {rows.ALL} == set(rows.GROUPS)


def test_echo_rows_are_every_size_with_every_number_of_connections() -> None:
    for api in ("tcp", "buffered", "streams", "sock", "unix", "unix-streams", "unix-sock"):
        for size in ("64", "1k", "16k", "64k"):
            for connections in (1, 10, 100, 1000):
                row = rows.ROWS[f"{api}-{size}-x{connections}"]
                assert isinstance(row, ServerRow)
                assert row.connections == connections
                assert row.size == int(size.removesuffix("k")) * (1024 if "k" in size else 1)


def test_unknown_row_is_told_what_was_meant() -> None:
    with pytest.raises(rows.UnknownRowError, match="did you mean call_soon"):
        rows.select(["callsoon"])


@pytest.mark.parametrize(
    "name",
    [
        row.name
        for row in rows.ROWS.values()
        if isinstance(row, LoopRow)
        and row.name not in ("timer-fire", "import")
        # these keep descriptors open: in processes of their own below, and in test_watch_programs
        and {"pipes", "sendfile", "files", "watch", "futex"}.isdisjoint(row.groups)
    ],
)
def test_loop_rows_do_their_batch_on_asyncio(name: str) -> None:
    row = rows.ROWS[name]
    assert isinstance(row, LoopRow)
    loop = asyncio.SelectorEventLoop()
    asyncio.set_event_loop(loop)
    try:
        run: Run = row.prepare(loop)
        result = run(2 * row.batch)
        if row.lateness:
            assert result is not None
            assert len(result["lateness_ns"]) == 2
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


# Arguments


def test_list_names_all_rows_and_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["list"]) == 0
    out = capsys.readouterr().out
    for name in [*rows.ROWS, *rows.GROUPS, *registry.LOOPS]:
        assert name in out
    assert "* tcp-1k-x100 " in out
    assert "  tcp-64-x10 " in out


def test_wrong_row_is_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["tcp-1k-x11"]) == 2
    assert "did you mean tcp-1k-x1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [["--loops", "uvlop"], ["--rounds", "0"], ["--window", "-1"], ["--base", "x"], ["--no-such"]],
)
def test_wrong_arguments_are_exit_status_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        bench.main(argv)
    assert exit_.value.code == 2
    assert "error" in capsys.readouterr().err


def test_loops_are_split_once_each() -> None:
    assert cli.parse(["--loops", "uvloop, asyncio,uvloop"]).loops == ["uvloop", "asyncio"]


# Arithmetic


def test_order_turns_round_and_lets_each_loop_begin() -> None:
    names = ["a", "b", "c"]
    turns = [runner.order(names, turn) for turn in range(6)]
    assert turns[0] == ["a", "b", "c"]
    assert turns[1] == ["c", "b", "a"]
    assert {turn[0] for turn in turns} == set(names)
    assert all(sorted(turn) == names for turn in turns)


def test_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    # The machine slows down by half after each round: the medians alone would say 1.5.
    mine = [window(200, 1.0), window(150, 1.0), window(50, 1.0)]
    base = [window(100, 1.0), window(50, 1.0), window(25, 1.0)]
    found = stats.ratio(mine, base, "rate")
    assert found == stats.Ratio(2.0, 2.0, 3.0)
    assert stats.median(mine, "rate") == 150


def test_values_are_per_operation() -> None:
    windows = [window(1000, 2.0, 1.0, instructions=5_000, instructions_user=2_000)]
    assert stats.median(windows, "rate") == 500
    assert stats.median(windows, "cpu") == pytest.approx(0.001)
    assert stats.median(windows, "busy") == pytest.approx(0.5)
    assert stats.median(windows, "instructions") == 5
    assert stats.median(windows, "instructions_user") == 2


def test_missing_value_is_none_and_never_zero() -> None:
    some = [window(1, 1.0, instructions=7), window(1, 1.0)]
    assert stats.median(some, "instructions") is None
    assert stats.ratio(some, some, "instructions") is None
    assert stats.ratio(some, [window(1, 1.0, cpu=0.0)] * 2, "cpu") is None
    assert stats.median([], "rate") is None


def test_lateness_counts_early_returns() -> None:
    windows: list[Measurement] = [{"lateness_ns": [-5, 10]}, {"lateness_ns": [20, 30, 0]}]
    assert stats.lateness(windows) == (10e-9, 30e-9, 1, 5)


def test_percentile_is_a_value_that_occurred() -> None:
    assert stats.percentile([3, 1, 2], 0.5) == 2
    assert stats.percentile([1], 0.99) == 1
    assert stats.percentile(list(range(100)), 0.99) == 99


def test_operations_fill_the_window_in_whole_batches() -> None:
    assert operations(100, 0.1, 1.0, 1) == 1000
    assert operations(100, 0.1, 1.0, 300) == 900
    assert operations(1000, 10.0, 1.0, 1000) == 1000


# Report


def result_of(name: str = "task") -> RowResult:
    return RowResult(
        rows.ROWS[name],
        {
            "uvloop": [window(1000, 1.0, 1.0), window(1000, 1.0, 1.0)],
            "asyncio": [window(500, 1.0, 1.0), window(250, 1.0, 1.0)],
        },
        {"rloop": "RuntimeError: no"},
    )


def test_table_shows_ratios_missing_columns_and_failures() -> None:
    lines = report.row_table(result_of(), ["asyncio", "uvloop", "rloop"], "uvloop").splitlines()
    assert lines[0].startswith("task: ")
    assert "task/s" in lines[1]
    assert lines[2].split()[:4] == ["asyncio", "375", "0.38", "0.25-0.50"]
    assert "n/a" in lines[2]
    assert lines[4].split(maxsplit=1) == ["rloop", "failed: RuntimeError: no"]
    assert len(lines[1]) == len(lines[2]) == len(lines[3])


def test_table_without_the_base_has_no_ratios() -> None:
    result = result_of()
    del result.windows["uvloop"]
    line = report.row_table(result, ["asyncio"], "uvloop").splitlines()[2]
    assert line.split()[:4] == ["asyncio", "375", "n/a", "n/a"]


def test_heading_gives_each_reason_once() -> None:
    where = machine.describe(
        {"asyncio": "3.13"}, {"instructions_user": "no PMU", "instructions": "no PMU"}
    )
    text = report.heading(where, OPTIONS, {"rloop": "ModuleNotFoundError"})
    assert text.count("no PMU") == 1
    assert "left out: rloop: ModuleNotFoundError" in text


def test_json_has_medians_ratios_and_windows() -> None:
    where = machine.describe({"asyncio": "3.13"}, {})
    document = json.loads(report.as_json(where, OPTIONS, {}, [result_of()], "uvloop"))
    [row] = document["rows"]
    assert row["name"] == "task"
    assert row["loops"]["rloop"] == {"failed": "RuntimeError: no"}
    assert row["loops"]["asyncio"]["median"]["rate"] == 375
    assert row["loops"]["asyncio"]["median"]["instructions"] is None
    assert row["loops"]["asyncio"]["ratio"]["rate"]["median"] == pytest.approx(0.375)
    assert len(row["loops"]["asyncio"]["windows"]) == 2


# Processes


def test_counters_measure_or_say_why_not() -> None:
    counters = Counters()
    before = counters.sample()
    sum(range(100_000))
    measured = counters.sample().since(before, 10)
    assert measured["ops"] == 10
    assert measured["seconds"] > 0
    assert measured["cpu"] > 0
    for name, value in (
        ("instructions_user", measured["instructions_user"]),
        ("instructions", measured["instructions"]),
    ):
        if name in counters.missing:
            assert value is None
            assert counters.missing[name]
        else:
            assert value is not None
            assert value > 0


def test_channel_keeps_messages_apart() -> None:
    left, right = socket.socketpair()
    with left, right:
        here, there = Channel(left), Channel(right)
        here.send(Reply(ready=True))
        here.send(Reply(failed="no"))
        assert there.reply(1.0) == {"ready": True}
        assert there.reply(1.0) == {"failed": "no"}
        with pytest.raises(TimeoutError):
            there.reply(0.01)
        here.close()
        with pytest.raises(ClosedError):
            there.command()


def test_workers_are_stopped_but_for_the_one_that_is_measured() -> None:
    cpu = min(os.sched_getaffinity(0))
    row = rows.ROWS["sleep0"]
    arguments = ["--cpu", str(cpu), "--loop", "asyncio", "--row", row.name]
    with Child("aiounify.bench.worker", *arguments) as child:
        child.wait_ready(30)
        stat = Path(f"/proc/{child._process.pid}/stat")

        def stopped() -> bool:
            return stat.read_text().rpartition(")")[2].split()[0] == "T"

        child.rest()
        deadline = time.monotonic() + 30
        while not stopped():  # the signal is pending for an instant
            assert time.monotonic() < deadline
            time.sleep(0.001)
        with child.awake():
            reply = child.ask(Command(cmd="count", count=1), 30)
            assert reply["measurement"]["ops"] == 1
        while not stopped():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert child._process.returncode == 0  # close() lets it go, and it ends by itself


def test_child_that_dies_says_how() -> None:
    child = Child("aiounify.bench.worker", "--no-such-argument")
    with child, pytest.raises(ChildError, match="exited with status 2"):
        child.wait_ready(20)


def test_loop_that_cannot_be_had_gives_a_reason() -> None:
    cpu = min(os.sched_getaffinity(0))
    child = Child("aiounify.bench.worker", "--cpu", str(cpu), "--loop", "nonsense")
    with child, pytest.raises(ChildError, match="KeyError"):
        child.wait_ready(20)


@needs_loadgen
def test_quick_run_of_a_loop_row_and_an_echo_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "result.json"
    argv = ["sleep0", "tcp-1k-x100", "lateness-50us", "--quick", "--rounds", "2"]
    argv += ["--window", "0.02", "--loops", "asyncio", "--base", "asyncio", "--json", str(target)]
    affinity = os.sched_getaffinity(0)
    assert bench.main(argv) == 0
    assert os.sched_getaffinity(0) == affinity
    out = capsys.readouterr().out
    assert "failed" not in out
    document = json.loads(target.read_text())
    assert [row["name"] for row in document["rows"]] == ["sleep0", "lateness-50us", "tcp-1k-x100"]
    for row in document["rows"]:
        found = row["loops"]["asyncio"]
        assert len(found["windows"]) == 2
        assert all(measured["ops"] > 0 for measured in found["windows"])
    assert document["rows"][1]["loops"]["asyncio"]["lateness"]["early"] == 0
    assert document["rows"][2]["loops"]["asyncio"]["median"]["p99"] > 0


def measured_on_asyncio(
    names: list[str], tmp_path: Path, loop: str = "asyncio"
) -> dict[str, dict[str, object]]:
    """A short run of these rows; row name to what the JSON says of asyncio, or another loop."""
    target = tmp_path / "result.json"
    argv = [*names, "--rounds", "1", "--window", "0.02", "--loops", loop, "--base", loop]
    assert bench.main([*argv, "--json", str(target)]) == 0
    document_ = json.loads(target.read_text())
    assert [row["name"] for row in document_["rows"]] == names
    return {row["name"]: row["loops"][loop] for row in document_["rows"]}


@needs_loadgen
def test_quick_run_of_every_kind_of_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="short") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        run_every_kind_of_server(tmp_path)
        assert not list(Path(directory).iterdir())


def run_every_kind_of_server(tmp_path: Path) -> None:
    names = ["buffered-1k-x10", "sock-64-x1", "unix-64k-x10", "unix-buffered-16k-x10"]
    names += ["unix-streams-1k-x100", "unix-sock-64-x10", "conn-protocol", "conn-streams"]
    names += ["udp-64", "udp-1400"]
    for name, found in measured_on_asyncio(names, tmp_path).items():
        assert "failed" not in found, name
        windows = found["windows"]
        assert isinstance(windows, list)
        assert windows[0]["ops"] > 0


@pytest.mark.parametrize("group", ["pipes", "sendfile", "futex"])
def test_quick_run_of_rows_with_processes(group: str, tmp_path: Path) -> None:
    for found in measured_on_asyncio(rows.GROUPS[group], tmp_path).values():
        assert found["median"]["rate"] > 0  # type: ignore[index]


def test_quick_run_of_the_files(tmp_path: Path) -> None:
    found = measured_on_asyncio(rows.GROUPS["files"], tmp_path, "aiounify-epoll")
    for name, result in found.items():
        assert "failed" not in result, name
        row = rows.ROWS[name]
        assert isinstance(row, LoopRow)
        assert bool(row.beside) == ("late" in name)
        if row.beside:
            # how late and how fast, in one row
            assert result["lateness"]["samples"] > 0  # type: ignore[index]
            assert result["median"]["beside"] > 0  # type: ignore[index]


@pytest.mark.parametrize(
    ("column", "group"),
    [("files-c", "files-c"), ("files-c-uring", "direct"), ("files-c-aio", "direct")],
)
def test_quick_run_of_the_same_in_c(column: str, group: str, tmp_path: Path) -> None:
    for name, result in measured_on_asyncio(rows.GROUPS[group], tmp_path, column).items():
        assert "failed" not in result, name
        assert result["median"]["rate"] > 0  # type: ignore[index]


def test_reads_in_c_say_what_went_wrong(tmp_path: Path) -> None:
    from aiounify.bench import _files

    path = tmp_path / "short"
    path.write_bytes(b"x")
    offsets = array("q", [0])
    with path.open("rb") as file:
        for read in (_files.direct_ring, _files.direct_aio):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                read(file.fileno(), offsets, 100, 8)
            with pytest.raises(ValueError, match="from 1 to 256"):
                read(file.fileno(), offsets, 100, 0)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            _files.pages(file.fileno(), offsets, 1)
    with pytest.raises(FileNotFoundError):
        _files.stats(str(tmp_path / "none"), 1)
    with pytest.raises(FileNotFoundError):
        _files.whole(str(tmp_path / "none"), 1, 1)
    assert _files.lines(str(path)) == 0
    _files.writes(str(path), b"ab\n", 3)
    assert path.read_bytes() == b"ab\n" * 3
    assert _files.lines(str(path)) == 3


def test_what_is_done_beside_a_timer_is_shown_with_its_lateness() -> None:
    row = rows.ROWS["file-late-x64"]
    assert isinstance(row, LoopRow)
    windows: list[Measurement] = [{"ops": 2, "seconds": 2.0, "lateness_ns": [1, 2], "beside": 50}]
    result = RowResult(row, {"asyncio": windows})
    table = report.row_table(result, ["asyncio"], "asyncio")
    assert "read/s" in table
    assert "25.0" in table
    where = machine.describe({"asyncio": ""}, {})
    text = report.as_json(where, OPTIONS, {}, [result], "asyncio")
    found = json.loads(text)
    assert found["rows"][0]["beside"] == "read"
    assert found["rows"][0]["loops"]["asyncio"]["ratio"]["beside"]["median"] == 1.0
    assert "early 0 of 2; 25.0 read/s" in document.tables(found)


@needs_loadgen
def test_idle_row_is_memory_of_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = rows.ROWS["idle-protocol"]
    assert isinstance(row, IdleRow)
    few = dataclasses.replace(row, connections=400)
    cpu = min(os.sched_getaffinity(0))
    result = runner.run_row(few, ["asyncio"], Options(1, 0.01, cpu, cpu))
    assert not result.failed
    assert 100 < (stats.median(result.windows["asyncio"], "memory") or 0) < 100_000
    table = report.row_table(result, ["asyncio"], "asyncio")
    assert "resident KiB" in table
    assert "1.00" in table


def test_memory_is_private_and_resident() -> None:
    private, resident = memory_used()
    assert 1 << 20 < private <= resident


def test_http_rows_without_wrk_say_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrk, "available", lambda: False)
    result = runner.run_row(rows.ROWS["uvicorn"], ["asyncio"], OPTIONS)
    assert "apt-get install wrk" in result.failed["asyncio"]


@pytest.mark.skipif(not wrk.available(), reason="wrk is not installed")
@pytest.mark.parametrize("server", ["uvicorn", "aiohttp"])
def test_quick_run_of_an_http_row(server: str, tmp_path: Path) -> None:
    pytest.importorskip(server)
    if server == "uvicorn":
        pytest.importorskip("httptools")
    found = measured_on_asyncio([server], tmp_path)[server]
    assert "failed" not in found
    assert found["median"]["p99"] > 0  # type: ignore[index]


_WRK = """Running 1s test @ http://127.0.0.1:8000/
  1 threads and 10 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   123.00us   10.00us   1.20ms   90.00%
  Latency Distribution
     50%  120.00us
     75%  130.00us
     90%  200.00us
     99%    1.10ms
  12345 requests in 1.10s, 1.50MB read
{trouble}Requests/sec:  11222.7
"""


def test_report_of_wrk() -> None:
    measured = wrk.parse(_WRK.format(trouble=""))
    assert measured["ops"] == 12345
    assert measured["seconds"] == pytest.approx(1.1)
    assert measured["p50"] == pytest.approx(120e-6)
    assert measured["p99"] == pytest.approx(1.1e-3)
    for trouble in (
        "  Non-2xx or 3xx responses: 7\n",
        "  Socket errors: connect 0, read 3, write 0, timeout 0\n",
    ):
        with pytest.raises(ValueError, match=trouble.strip()):
            wrk.parse(_WRK.format(trouble=trouble))
    with pytest.raises(ValueError, match="no answers"):
        wrk.parse("unable to connect")


_REDIS = """"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms"\
,"p99_latency_ms","max_latency_ms"
"SET","20000.00","2.2","0.3","1.25","7.6","9.5","16.2"
"""


def test_report_of_redis_benchmark() -> None:
    measured = redisbench.parse(_REDIS, 10_000)
    assert measured["ops"] == 10_000
    assert measured["seconds"] == pytest.approx(0.5)
    assert measured["p50"] == pytest.approx(1.25e-3)
    assert measured["p99"] == pytest.approx(9.5e-3)
    with pytest.raises(ValueError, match="refused"):
        redisbench.parse("Could not connect: Connection refused", 1)
    with pytest.raises(ValueError, match="Error from server"):
        redisbench.parse("Error from server: ERR no\n" + _REDIS, 1)


# Other programs as columns


def test_a_program_that_is_not_installed_says_how_to_get_it() -> None:
    missing = Program("none", "no-such-executable", "apt-get install none", (), lambda _: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ChildError, match="apt-get install none"):
        program.version(missing)


def test_programs_are_columns_of_their_own_rows_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows.programs(rows.ROWS["kvstore-set"]) == ("redis-server",)
    assert rows.programs(rows.ROWS["tcp-1k-x1"]) == ()
    assert cli.parse(["--loops", "asyncio,redis-server"]).loops == ["asyncio", "redis-server"]
    with pytest.raises(SystemExit):
        cli.parse(["--loops", "redis-sever"])
    assert "did you mean redis-server?" in capsys.readouterr().err


@pytest.mark.skipif(
    not (redisbench.available() and shutil.which("redis-server")), reason="no redis installed"
)
def test_quick_run_of_a_row_with_a_program(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    names = "asyncio,redis-server"
    assert cli.run(["kvstore-get", "--quick", "--loops", names, "--json", str(target)]) == 0
    measured = json.loads(target.read_text())
    assert set(measured["machine"]["loops"]) == {"asyncio", "redis-server"}
    (row,) = measured["rows"]
    assert row["base"] == "redis-server"
    found = row["loops"]
    assert found["redis-server"]["median"]["cpu"] > 0
    assert found["asyncio"]["ratio"]["rate"]["median"] > 0
    text = document.tables(measured)
    assert "| row | redis-server | asyncio |" in text


# Instructions by callgrind


def test_callgrind_counts_whole_batches_and_every_connection() -> None:
    for row in rows.ROWS.values():
        less, more = callgrind.sizes(row)
        assert more == 3 * less
        if isinstance(row, LoopRow):
            assert less % row.batch == 0
        if isinstance(row, ServerRow):
            assert less >= 3 * row.connections
    assert callgrind.sizes(rows.ROWS["import"]) == (0, 0)
    assert callgrind.sizes(rows.ROWS["uvicorn"]) == (0, 0)


def test_row_that_callgrind_cannot_count_says_so() -> None:
    with pytest.raises(ChildError, match="cannot count"):
        callgrind.count(rows.ROWS["import"], "asyncio", 0, 0)


def test_callgrind_that_is_missing_is_exit_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(callgrind, "available", lambda: False)
    assert bench.main(["task", "--callgrind"]) == 2
    assert "apt-get install valgrind" in capsys.readouterr().err


def test_counter_of_callgrind_needs_valgrind() -> None:
    with pytest.raises(OSError, match="valgrind"):
        Counters("/nonexistent")


@needs_loadgen
@pytest.mark.timeout(300)
@pytest.mark.skipif(not callgrind.available(), reason="valgrind is not installed")
def test_callgrind_fills_the_instructions_of_the_user(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    argv = ["tcp-64-x10", "--callgrind", "--rounds", "1", "--window", "0.02"]
    argv += ["--loops", "asyncio", "--base", "asyncio", "--json", str(target)]
    assert bench.main(argv) == 0
    document_ = json.loads(target.read_text())
    assert "instructions_user" not in document_["machine"]["counters"]
    [row] = document_["rows"]
    assert "uncounted" not in row
    assert 1_000 < row["loops"]["asyncio"]["median"]["instructions_user"] < 1_000_000


# The document


def run_of(*results: RowResult) -> dict[str, object]:
    where = machine.describe({"uvloop": "1.0", "asyncio": "3.13", "rloop": "2"}, {})
    left_out = {"zloop": "ModuleNotFoundError"}
    found: dict[str, object] = json.loads(
        report.as_json(where, OPTIONS, left_out, results, "uvloop")
    )
    return found


def test_document_keeps_its_prose() -> None:
    text = f"before\n{document.BEGIN}\nold\n{document.END}\nafter\n"
    written = document.insert(text, "new")
    assert written == f"before\n{document.BEGIN}\n\nnew\n\n{document.END}\nafter\n"
    assert document.insert(written, "new") == written
    with pytest.raises(ValueError, match="lacks the lines"):
        document.insert("no markers", "new")


def test_tables_have_losses_failures_and_absolutes() -> None:
    idle = RowResult(
        rows.ROWS["idle-streams"],
        {
            "uvloop": [{"ops": 10, "memory": 20480, "resident": 20480}],
            "asyncio": [{"ops": 10, "memory": 30720, "resident": 30720}],
        },
    )
    late = RowResult(
        rows.ROWS["lateness-5ms"], {"asyncio": [{"ops": 2, "lateness_ns": [-5, 5000]}]}
    )
    late.windows["asyncio"][0].update(window(2, 1.0, 0.1))
    text = document.tables(run_of(result_of(), idle, late))
    assert "zloop (ModuleNotFoundError)" in text
    assert "| `task` | 1.00k task/s, 1000 us | 0.38 / 3.00 | failed (1) |" in text
    assert "1. `task`, rloop: RuntimeError: no" in text
    assert "| `idle-streams` | 2.00 KiB | 1.50 | not measured |" in text
    assert "p99 5 us; early 1 of 2" in text
    assert "There are no instructions" in text


def test_ratio_on_both_sides_of_one_is_marked() -> None:
    result = RowResult(
        rows.ROWS["task"],
        {
            "uvloop": [window(100, 1.0, 1.0, instructions_user=100)] * 2,
            "asyncio": [
                window(90, 1.0, 1.0, instructions_user=180),
                window(120, 1.0, 2.0, instructions_user=240),
            ],
        },
    )
    text = document.tables(run_of(result))
    assert "| `task` | 100 task/s, 10.0k us, 1.00 instr | ~1.05 / 1.39 / 2.00 |" in text


def test_report_writes_the_document_and_its_plot(tmp_path: Path) -> None:
    source, target = tmp_path / "run.json", tmp_path / "docs" / "performance.md"
    source.write_text(json.dumps(run_of(result_of())))
    # In a process of its own: matplotlib keeps the files of its fonts open.
    command = [sys.executable, "-m", "aiounify.bench", "report", str(source), "-o", str(target)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    written = target.read_text()
    assert "`task`" in written
    assert written.count(document.BEGIN) == 1
    if importlib.util.find_spec("matplotlib") is None:
        assert "matplotlib is not installed" in said.stderr
        assert "performance.svg" not in written
        return
    plot = (tmp_path / "docs" / "performance.svg").read_bytes()
    assert "performance.svg" in written
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "docs" / "performance.svg").read_bytes() == plot
    assert target.read_text() == written


def test_report_of_several_runs_has_the_newest_of_each_row() -> None:
    def of(ops: int) -> RowResult:
        return RowResult(rows.ROWS["task"], {"uvloop": [window(ops, 1.0, 1.0)]})

    other = RowResult(rows.ROWS["future"], {"uvloop": [window(7, 1.0, 1.0)]})
    found = document.together([run_of(of(1000), other), run_of(of(2000))])
    text = document.tables(found)
    assert "| `task` | 2.00k task/s" in text
    assert "| `future` | 7.00 wake-up/s" in text
    with pytest.raises(ValueError, match="the runs differ"):
        document.together([run_of(of(1)), {**run_of(of(2)), "machine": {}}])


@pytest.mark.parametrize("text", ["{}", "[]", "not json"])
def test_report_of_something_else_is_exit_status_2(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "run.json"
    source.write_text(text)
    assert bench.main(["report", str(source), "-o", str(tmp_path / "p.md")]) == 2
    assert "bench report:" in capsys.readouterr().err
    assert not (tmp_path / "p.md").exists()


# The load generator against servers that misbehave


def _serve_once(reply: bytes) -> tuple[str, int]:
    """A server in a thread that answers one request with these bytes and closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    address: tuple[str, int] = listener.getsockname()

    def serve() -> None:
        with listener:
            # The first connection is the load generator's look at the address.
            listener.accept()[0].close()
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(reply)

    threading.Thread(target=serve, daemon=True).start()
    return address


@needs_loadgen
@pytest.mark.parametrize(
    ("reply", "message"),
    [(b"", "closed"), (b"short", "differs"), (b"x" * 100, "length")],
)
def test_load_generator_verifies_the_echo(reply: bytes, message: str) -> None:
    from aiounify.bench._loadgen import Load

    load = Load(_serve_once(reply), 1, 64)
    with pytest.raises(ValueError, match=message):
        load.run(0.05)
    load.close()
    with pytest.raises(ValueError, match="closed"):
        load.run(0.05)


@needs_loadgen
@pytest.mark.parametrize("kind", ["stream", "reconnect"])
@pytest.mark.parametrize("family", ["inet", "unix"])
async def test_load_generator_conversations(kind: str, family: str, tmp_path: Path) -> None:
    from aiounify.bench._loadgen import Load

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    address: tuple[str | int, ...]
    if family == "inet":
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
    else:
        address = (str(tmp_path / "socket"),)
        server = await asyncio.start_unix_server(echo, address[0])
    loop = asyncio.get_running_loop()
    load = await loop.run_in_executor(None, Load, address, 3, 100_000, kind)
    measured = await loop.run_in_executor(None, load.run, 0.05)
    counted = await loop.run_in_executor(None, load.run, 0.0, 8)
    load.close()
    server.close()
    await asyncio.sleep(0.01)
    assert measured["ops"] >= 3
    assert counted["ops"] == 8
    assert measured["seconds"] > 0
    assert 0 < measured["p50"] <= measured["p99"]


@needs_loadgen
async def test_load_generator_datagrams() -> None:
    from aiounify.bench._loadgen import Load

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            # Python 3.11's own transport is no asyncio.DatagramTransport.
            self.sendto = transport.sendto  # type: ignore[attr-defined]
            self.dropped = False

        def datagram_received(self, data: bytes, address: tuple[str | object, int]) -> None:
            if not self.dropped:
                self.dropped = True
                return
            self.sendto(data, address)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    address = transport.get_extra_info("sockname")
    load = Load(address, 1, 64, "datagram")
    measured = await loop.run_in_executor(None, load.run, 0.3)
    load.close()
    transport.close()
    assert measured["ops"] > 0
    assert measured["resent"] == 1


def test_the_proxies_are_compared_with_haproxy() -> None:
    for row in rows.select(["proxy"]):
        assert rows.programs(row) == ("haproxy", "splice-c")
        assert isinstance(row, rows.HttpRow)
        assert row.base == "haproxy"


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_proxy_in_c(tmp_path: Path) -> None:
    """It is a proxy: all bytes, both ways, and the end of one way leaves the other alone."""
    source = Path(rows.__file__).parents[1] / "c" / "splice_proxy.c"
    made, data = tmp_path / "splice_proxy", bytes(range(256)) * 4096
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-o", made, source], check=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        target, mine = server.getsockname()[1], free_port()
        with subprocess.Popen([made, str(mine), str(target)]) as child:
            try:
                deadline = time.monotonic() + 20
                while True:
                    try:
                        client = socket.create_connection(("127.0.0.1", mine))
                        break
                    except ConnectionRefusedError:
                        assert time.monotonic() < deadline
                        time.sleep(0.01)
                other, _ = server.accept()
                with client, other:
                    got = b""
                    sender = threading.Thread(
                        target=lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR))
                    )
                    sender.start()
                    while more := other.recv(65536):
                        got += more
                    sender.join()
                    assert got == data
                    other.sendall(b"still here")
                    other.shutdown(socket.SHUT_WR)
                    assert client.recv(10, socket.MSG_WAITALL) == b"still here"
                    assert client.recv(100) == b""
            finally:
                child.terminate()


def test_the_server_behind_a_measured_proxy() -> None:
    """It answers pipelined requests, and ends when its standard input does."""
    argv = [sys.executable, "-m", "aiounify.bench.upstream", "70000"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        port = int(child.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            got = b""
            while data := client.recv(1 << 16):
                got += data
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n"
        assert got == 2 * (head + bytes(70000))
        child.stdin.close()
        assert child.wait(30) == 0
