"""aiounify.files.Path: what pathlib.Path says, awaited."""

import asyncio
import errno
import inspect
import os
import pathlib
import socket
import sys

import pytest

from aiounify.files import Path

HANG = 30


@pytest.fixture
def tree(tmp_path):
    """A directory with something of everything; both kinds of path."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep.txt").write_text("deep")
    (tmp_path / "a" / "one.py").write_text("1")
    (tmp_path / "two.py").write_text("22")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "link").symlink_to("two.py")
    (tmp_path / "links").symlink_to("a", target_is_directory=True)
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
    return tmp_path


NAMES = [
    "two.py", "a", "link", "links", "broken", "loop", "fifo", "sock", "nothing", "two.py/below",
    "nul\0l", "a/b/deep.txt", "/dev/null", "/",
]  # fmt: skip


# -- names ---------------------------------------------------------------------------------------


def test_it_is_a_pure_path():
    path = Path("/tmp") / "a" / "b.txt"
    assert isinstance(path, pathlib.PurePath)
    assert not isinstance(path, pathlib.Path)
    for each in (path, path.parent, path.with_suffix(".py"), path.relative_to("/tmp"), "x" / path):
        assert type(each) is Path
    assert all(type(each) is Path for each in path.parents)
    assert (path.name, path.suffix, path.parts) == ("b.txt", ".txt", ("/", "tmp", "a", "b.txt"))
    assert os.fspath(path) == str(path) == "/tmp/a/b.txt"
    assert repr(path) == "Path('/tmp/a/b.txt')"
    assert path == Path("/tmp/a/b.txt")
    assert hash(path) == hash(Path("/tmp/a/b.txt"))
    assert path.match("*.txt")
    assert sorted([path, path.parent])[0] == path.parent
    assert path.as_uri() == "file:///tmp/a/b.txt"


def test_a_subclass_stays_one():
    class Mine(Path):
        pass

    assert type(Mine("a") / "b") is Mine


def test_every_method_that_touches_files_is_there():
    """What pathlib's Path has beyond its PurePath, apart from what came after 3.13."""
    later = {"copy", "copy_into", "move", "move_into", "info"}
    names = {n for n in set(dir(pathlib.Path)) - set(dir(pathlib.PurePath)) if n[0] != "_"}
    names -= {"link_to"}
    for name in sorted(names - later):
        method = getattr(Path, name)
        if name not in ("open", "from_uri"):
            assert inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method), name


# -- questions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    ["exists", "is_dir", "is_file", "is_symlink", "is_socket", "is_fifo", "is_block_device",
     "is_char_device", "is_mount"],
)  # fmt: skip
async def test_questions(tree, question):
    for name in NAMES:
        expected = getattr(tree / name, question)()
        assert await getattr(Path(tree) / name, question)() == expected, name


async def test_questions_about_the_link_itself(tree):
    path = Path(tree)
    assert await (path / "broken").exists(follow_symlinks=False)
    assert not await (path / "links").is_dir(follow_symlinks=False)
    assert not await (path / "link").is_file(follow_symlinks=False)
    assert not await path.is_junction()


async def test_a_question_that_cannot_be_answered(tree):
    with pytest.raises(OSError) as caught:
        await (Path(tree) / ("x" * 300)).exists()
    assert caught.value.errno == errno.ENAMETOOLONG


async def test_stat(tree):
    path = Path(tree) / "link"
    assert (await path.stat()).st_ino == (tree / "two.py").stat().st_ino
    assert (await path.lstat()).st_ino == (tree / "link").lstat().st_ino
    assert await path.samefile(tree / "two.py")
    assert not await path.samefile(str(tree / "a/one.py"))
    assert await path.owner() == (tree / "link").owner()
    assert await path.group() == (tree / "link").group()
    for method in (path.with_name("none").stat, path.with_name("none").lstat):
        with pytest.raises(FileNotFoundError) as caught:
            await method()
        assert str(caught.value.filename) == str(tree / "none")


async def test_where_it_is(tree, monkeypatch):
    monkeypatch.chdir(tree)
    assert await Path.cwd() == Path(tree)
    assert await Path.home() == Path(pathlib.Path.home())
    assert await Path("a").absolute() == Path(tree) / "a"
    assert await Path("links/b/..").resolve() == Path(tree.resolve() / "a")
    assert await Path("~/x").expanduser() == Path(pathlib.Path.home() / "x")
    assert await Path("link").readlink() == Path("two.py")
    assert type(await Path("a").resolve()) is Path
    with pytest.raises(FileNotFoundError):
        await Path("none").resolve(strict=True)
    if sys.version_info >= (3, 13):
        assert Path.from_uri("file:///tmp/x") == Path("/tmp/x")


# -- what is inside ------------------------------------------------------------------------------


async def test_iterdir(tree):
    found = [each async for each in Path(tree).iterdir()]
    assert sorted(found) == sorted(map(Path, tree.iterdir()))
    assert all(type(each) is Path for each in found)
    with pytest.raises(NotADirectoryError) as caught:
        [each async for each in (Path(tree) / "two.py").iterdir()]
    assert str(caught.value.filename) == str(tree / "two.py")


async def test_a_large_directory(tmp_path):
    for i in range(1000):
        (tmp_path / str(i)).touch()
    found = {each.name async for each in Path(tmp_path).iterdir()}
    assert found == {str(i) for i in range(1000)}
    found = {each.name async for each in Path(tmp_path).glob("*")}
    assert found == {str(i) for i in range(1000)}
    async for _ in Path(tmp_path).glob("*"):  # left early
        break


@pytest.mark.parametrize("pattern", ["*", "*.py", "**/*.py", "a/*", "none*", "**"])
async def test_glob(tree, pattern):
    found = [each async for each in Path(tree).glob(pattern)]
    assert sorted(found) == sorted(map(Path, tree.glob(pattern)))
    found = [each async for each in Path(tree).rglob(pattern)]
    assert sorted(found) == sorted(map(Path, tree.rglob(pattern)))


async def test_bad_pattern(tree):
    with pytest.raises((ValueError, NotImplementedError)):
        [each async for each in Path(tree).glob("/absolute")]


@pytest.mark.parametrize("top_down", [True, False])
@pytest.mark.parametrize("follow", [True, False])
async def test_walk(tree, top_down, follow):
    (tree / "loop").unlink()
    found = {}
    order = []
    async for path, directories, others in Path(tree).walk(top_down, follow_symlinks=follow):
        assert type(path) is Path
        found[path] = (sorted(directories), sorted(others))
        order.append(path)
    everything = ["two.py", ".hidden", "link", "broken", "fifo", "sock"]
    expected = {
        Path(tree): (["a"], sorted([*everything, "links"])),
        Path(tree / "a"): (["b"], ["one.py"]),
        Path(tree / "a/b"): ([], ["deep.txt"]),
    }
    if follow:
        expected[Path(tree)] = (["a", "links"], sorted(everything))
        expected[Path(tree / "links")] = (["b"], ["one.py"])
        expected[Path(tree / "links/b")] = ([], ["deep.txt"])
    assert found == expected
    assert order[0 if top_down else -1] == Path(tree)
    for path in order[1:] if top_down else order[:-1]:
        before = order.index(path.parent) < order.index(path)
        assert before == top_down


async def test_walk_enters_what_is_left_in_the_list(tree):
    found = []
    async for path, directories, _ in Path(tree).walk():
        found.append(path.name)
        directories[:] = [name for name in directories if name != "b"]
    assert found == [tree.name, "a"]


async def test_walk_of_what_cannot_be_read(tree):
    errors = []
    assert [each async for each in Path(tree / "none").walk(on_error=errors.append)] == []
    assert [type(each) for each in errors] == [FileNotFoundError]
    assert [each async for each in Path(tree / "none").walk()] == []

    def refuse(exc):
        raise exc

    with pytest.raises(FileNotFoundError):
        [each async for each in Path(tree / "none").walk(on_error=refuse)]


async def test_walk_removes_a_tree(tree):
    async for path, directories, others in Path(tree).walk(top_down=False):
        for name in others:
            await (path / name).unlink()
        for name in directories:
            await (path / name).rmdir()
    assert list(tree.iterdir()) == []


# -- actions -------------------------------------------------------------------------------------


async def test_directories(tmp_path):
    path = Path(tmp_path) / "x" / "y" / "z"
    with pytest.raises(FileNotFoundError):
        await path.mkdir()
    await path.mkdir(0o750, parents=True)
    assert await path.is_dir()
    assert (await path.stat()).st_mode & 0o777 == 0o750 & ~_umask()
    with pytest.raises(FileExistsError):
        await path.mkdir()
    await path.mkdir(parents=True, exist_ok=True)
    await (path / "file").touch()
    with pytest.raises(FileExistsError):
        await (path / "file").mkdir(exist_ok=True)
    with pytest.raises(OSError) as caught:
        await path.rmdir()
    assert caught.value.errno == errno.ENOTEMPTY
    await (path / "file").unlink()
    await path.rmdir()
    assert not await path.exists()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


async def test_touch(tmp_path):
    path = Path(tmp_path) / "x"
    await path.touch(0o600)
    assert (await path.stat()).st_mode & 0o777 == 0o600
    os.utime(path, (0, 0))
    await path.touch()
    assert (await path.stat()).st_mtime > 1000
    with pytest.raises(FileExistsError):
        await path.touch(exist_ok=False)
    await path.chmod(0o640)
    assert (await path.stat()).st_mode & 0o777 == 0o640


async def test_content(tmp_path):
    path = Path(tmp_path) / "x"
    assert await path.write_text("ä\nb\n", encoding="latin1", newline="\r\n") == 4
    assert await path.read_bytes() == b"\xe4\r\nb\r\n"
    assert await path.read_text("latin1") == "ä\nb\n"
    assert await path.write_bytes(b"whole", atomic=True) == 5
    assert await path.write_text("text", atomic=True) == 4
    assert await path.read_text() == "text"
    assert [each.name async for each in Path(tmp_path).iterdir()] == ["x"]
    async with path.open("a") as file:
        await file.write(" more")
    file = await path.open("rb")
    assert await file.read() == b"text more"
    await file.close()
    with pytest.raises(FileNotFoundError):
        await (path.parent / "none").read_bytes()
    with pytest.raises(IsADirectoryError):
        await path.parent.write_bytes(b"")


async def test_other_names(tmp_path):
    path = Path(tmp_path)
    await (path / "one").touch()
    moved = await (path / "one").rename(path / "two")
    assert type(moved) is Path
    assert moved == path / "two"
    await (path / "link").symlink_to("two")
    assert await (path / "link").readlink() == Path("two")
    await (path / "same").hardlink_to(path / "two")
    assert await (path / "same").samefile(moved)
    await (path / "other").touch()
    assert await (path / "other").replace(str(moved)) == moved
    assert not await (path / "same").samefile(moved)
    await moved.unlink()
    with pytest.raises(FileNotFoundError):
        await moved.unlink()
    await moved.unlink(missing_ok=True)
    with pytest.raises(FileExistsError):
        await (path / "same").hardlink_to(path / "link")


async def test_many_at_once(tmp_path):
    async def one(i):
        path = Path(tmp_path) / str(i % 7) / str(i)
        await path.mkdir(parents=True)
        await (path / "x").touch()
        return [each.name async for each in path.iterdir()]

    assert await asyncio.gather(*map(one, range(50))) == [["x"]] * 50


async def test_iteration_that_is_cancelled(tree):
    for n in range(8):

        async def iterate():
            return [each async for each in Path(tree).rglob("*")]

        task = asyncio.create_task(iterate())
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])


def test_another_loop(tree):
    with asyncio.Runner() as runner, pytest.raises(RuntimeError, match="aiounify"):
        runner.run(Path(tree).resolve())
