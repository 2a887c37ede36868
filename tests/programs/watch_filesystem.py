"""A file system of its own watched as a whole: `python watch_filesystem.py TEST`.

Status 77 if this machine does not allow it.
"""

import asyncio
import ctypes
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from shadow import Shadow
from tree_shaker import shake

import aiounify
from aiounify import _filesystem
from aiounify.watching import DEFAULT, Change, Kind, Watch, ignoring

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
MS_BIND, MS_PRIVATE, MS_REC = 1 << 12, 1 << 18, 1 << 14
NAMES = Kind.CREATED | Kind.DELETED | Kind.MOVED
STEPS = int(os.environ.get("STEPS", "150"))


def need(result: int) -> None:
    if result:
        print(os.strerror(ctypes.get_errno()))
        sys.exit(77)


def watch(path: Path, mask: Kind = NAMES, **options: object) -> Watch:
    return aiounify.watch(path, filesystem=True, mask=mask, **options)  # type: ignore[call-overload]


def same(found: list[tuple[str, ...]], expected: list[tuple[str, ...]]) -> None:
    assert found == expected, "\n".join(map(str, found))


def told(changes: list[Change], root: Path) -> list[tuple[str, ...]]:
    """Kind and paths below root."""
    return [
        (c.kind.name, *(os.path.relpath(p, root) for p in (c.old_path, c.path) if p is not None))
        for c in changes
    ]


async def meaning(root: Path, other: Path) -> None:
    (root / "before" / "deep").mkdir(parents=True)
    async with watch(root, DEFAULT) as changes:
        (root / "file").write_text("x")
        (root / "file").rename(root / "name")
        (root / "before" / "deep" / "inner").touch()
        (root / "before").rename(root / "after")
        (root / "after" / "deep" / "inner").unlink()
        (root / "name").chmod(0o600)
        (other / "elsewhere").touch()
        same(
            told(changes.drain(), root),
            [
                ("CREATED", "file"),
                ("MODIFIED", "file"),
                ("WRITTEN", "file"),
                ("MOVED", "file", "name"),
                # events of one name are one event while nobody has read them
                ("CREATED", "before/deep/inner"),
                ("WRITTEN", "before/deep/inner"),
                ("DELETED", "before/deep/inner"),
                ("MOVED", "before", "after"),
                ("ATTRIBUTES", "name"),
            ],
        )
        async with asyncio.timeout(20):
            waiting = asyncio.ensure_future(changes.wait())
            await asyncio.sleep(0)
            (root / "later").mkdir()
            change = await waiting
        assert (change.kind, change.path, change.is_dir) == (Kind.CREATED, f"{root}/later", True)
        waiting = asyncio.ensure_future(changes.wait())
        await asyncio.sleep(0)
    assert isinstance(
        (await asyncio.gather(waiting, return_exceptions=True))[0], StopAsyncIteration
    )
    assert changes.reason == "closed"

    # below a directory, with a filter
    inside, aside = root / "inside", root / "aside"
    for folder in (inside, aside, inside / ".git", inside / "sub"):
        folder.mkdir()
    async with watch(inside, filter=ignoring(".git", "*.tmp")) as changes:
        (aside / "x").touch()
        (inside / ".git" / "x").touch()
        (inside / "x.tmp").touch()
        (inside / "x.tmp").rename(inside / "x")
        (inside / "x").rename(aside / "y")
        (aside / "y").rename(inside / "sub" / "y")
        (inside / "sub").rename(aside / "sub")
        (aside / "sub" / "z").touch()
        same(
            told(changes.drain(), inside),
            [
                ("CREATED", "x"),
                ("DELETED", "x"),
                ("CREATED", "sub/y"),
                ("DELETED", "sub"),
            ],
        )
        inside.rename(root / "gone")
        async with asyncio.timeout(20):
            assert [c async for c in changes] == []
        assert changes.reason == "moved"

    # it is a source, and gives batches
    async with aiounify.watch(root, filesystem=True, batch=0) as batches:
        (root / "one").touch()
        (root / "two").touch()
        async with asyncio.timeout(20):
            source, batch = await aiounify.select(batches)
        assert source is batches
        assert [c.path for c in batch if c.kind is Kind.CREATED] == [f"{root}/one", f"{root}/two"]


async def randomly(root: Path, other: Path) -> None:
    """Every state is reached by what is told, without gaps or doubles."""
    shake(1, 30, root, other)
    shadow = Shadow(root)
    shaker = [sys.executable, Path(__file__).with_name("tree_shaker.py"), root, other]
    rng = random.Random(int(os.environ.get("SEED", "7")))
    with subprocess.Popen(  # noqa: ASYNC220
        shaker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        async with watch(root) as changes:
            for _ in range(STEPS):
                step = rng.randrange(4)
                if step == 0:
                    shake(rng.randrange(1 << 30), rng.randrange(1, 20), root, other)
                elif step == 1:
                    child.stdin.write(f"{rng.randrange(1 << 30)} {rng.randrange(1, 60)}\n")
                    child.stdin.flush()
                    if rng.randrange(3):
                        for change in changes.drain():
                            shadow.apply(change)
                    assert child.stdout.readline() == "done\n"
                elif step == 2:
                    for change in changes.drain():
                        shadow.apply(change)
                else:
                    await shadow.follow(changes)
            await shadow.follow(changes)
        child.stdin.close()


async def merged(root: Path, other: Path) -> None:
    """To and fro while nobody reads: the kernel makes one event of equal ones."""
    a, b = root / "a", root / "b"
    for is_dir in (False, True):
        async with watch(root) as changes:
            a.mkdir() if is_dir else a.touch()
            for _ in range(3):
                a.rename(b)
                b.rename(a)
            a.rename(b)
            shadow = Shadow(other)
            shadow.root = str(root)
            for change in changes.drain():
                shadow.apply(change)
            assert shadow.tree == {str(b): is_dir}
            b.rmdir() if is_dir else b.unlink()
            same(told(changes.drain(), root), [("DELETED", "b")])
            # made, renamed, removed and made again at the same place
            for _ in range(3):
                a.mkdir() if is_dir else a.touch()
                a.rename(b)
                b.rename(a)
                a.rmdir() if is_dir else a.unlink()
            b.touch()
            shadow.tree.clear()
            for change in changes.drain():
                shadow.apply(change)
            assert shadow.tree == {str(b): False}
            b.unlink()


async def overflow(root: Path, other: Path) -> None:
    limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())  # noqa: ASYNC240
    if limit > 1 << 17:
        print(f"fs.fanotify.max_queued_events is {limit}")
        sys.exit(77)
    async with watch(root) as changes:
        for i in range(limit + 100):
            os.close(os.open(root / str(i), os.O_CREAT | os.O_WRONLY))
        found = changes.drain()
        while more := changes.drain():
            found += more
        assert found[-1].kind is Kind.OVERFLOW, found[-1]
        (root / "later").mkdir()
        (root / "later" / "file").touch()
        same(told(changes.drain(), root), [("CREATED", "later"), ("CREATED", "later/file")])
        # so many directories that the table of them is begun anew
        _filesystem._REMEMBERED = 8
        for i in range(20):
            (root / "later" / f"d{i}").mkdir()
        assert len(changes.drain()) == 20
        assert not changes._places  # type: ignore[attr-defined]
        (root / "later" / "d7" / "x").touch()
        same(told(changes.drain(), root), [("CREATED", "later/d7/x")])


async def unmounting(root: Path, other: Path) -> None:
    shown = other / "shown"
    shown.mkdir()
    (root / "part").mkdir()
    need(libc.mount(os.fsencode(root / "part"), os.fsencode(shown), None, MS_BIND, None))
    async with watch(shown) as part, watch(root) as changes:
        (root / "part" / "x").touch()
        (root / "y").touch()
        same(told(part.drain(), shown), [("CREATED", "x")])
        same(told(changes.drain(), root), [("CREATED", "part/x"), ("CREATED", "y")])
        need(libc.umount(os.fsencode(shown)))
        (root / "last").touch()
        need(libc.umount(os.fsencode(root)))
        async with asyncio.timeout(20):
            same(told([c async for c in changes], root), [("CREATED", "last")])
        assert changes.reason == "unmounted"


async def forking(root: Path, other: Path) -> None:
    """A child that ends takes nothing from its parent."""
    async with watch(root) as changes:
        child = os.fork()
        if not child:
            os._exit(bool([fd for fd in os.listdir("/proc/self/fd") if "fanotify" in where(fd)]))  # noqa: PTH208
        assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222
        (root / "x").touch()
        same(told(changes.drain(), root), [("CREATED", "x")])


def where(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115
    except OSError:
        return ""


async def refused(root: Path, other: Path) -> None:
    """What is missing is said."""
    (root / "file").touch()
    for path, error in ((root / "file", NotADirectoryError), (root / "none", FileNotFoundError)):
        try:
            await watch(path).__aenter__()
        except error as exc:
            assert exc.filename == str(path)
        else:
            raise AssertionError(path)
    try:  # a file system without handles
        await watch(Path("/proc")).__aenter__()
    except OSError as exc:
        assert "recursive=True" in str(exc), exc
    else:
        raise AssertionError
    # an old kernel
    real = _filesystem.lib

    class Old:
        def au_fan_init(self) -> int:
            _filesystem.ffi.errno = errno.EINVAL
            return -1

    _filesystem.lib = Old()  # type: ignore[assignment]
    try:
        await watch(root).__aenter__()
    except OSError as exc:
        assert exc.errno == errno.EOPNOTSUPP
        assert "Linux 5.17" in str(exc), exc
    else:
        raise AssertionError
    _filesystem.lib = real
    root.chmod(0o755)  # noqa: ASYNC240
    os.setresuid(65534, 65534, 65534)
    try:
        await watch(root).__aenter__()
    except PermissionError as exc:
        assert "CAP_SYS_ADMIN" in str(exc), exc
    else:
        raise AssertionError
    os._exit(0)  # nobody may remove the mount


TESTS = {
    test.__name__: test
    for test in (meaning, randomly, merged, overflow, unmounting, forking, refused)
}


async def main(name: str, folder: Path) -> None:
    root, other = folder / "root", folder / "other"
    root.mkdir()
    other.mkdir()
    need(libc.mount(b"none", os.fsencode(root), b"tmpfs", 0, None))
    folder.chmod(0o755)  # noqa: ASYNC240
    try:
        async with aiounify.watch(root, filesystem=True):
            pass
    except OSError as exc:
        print(exc)
        sys.exit(77)
    await TESTS[name](root, other)
    libc.umount(os.fsencode(root))


if __name__ == "__main__":
    need(libc.unshare(CLONE_NEWNS))
    need(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    parent = tempfile.mkdtemp()
    try:
        aiounify.run(main(sys.argv[1], Path(parent)))
    finally:
        shutil.rmtree(parent, ignore_errors=True)
