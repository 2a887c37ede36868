"""What programs do with aiofiles, with aiounify.files in its place."""

import asyncio
import sys

import aiounify
import aiounify.files

sys.modules["aiofiles"] = aiounify.files
sys.modules["aiofiles.os"] = aiounify.files.os
sys.modules["aiofiles.ospath"] = aiounify.files.os.path

import aiofiles  # noqa: E402
import aiofiles.os  # noqa: E402
from aiofiles import open as aio_open  # noqa: E402
from aiofiles import ospath  # noqa: E402


async def readme(directory: str) -> None:
    async with aiofiles.open(f"{directory}/filename", mode="w") as f:
        await f.write("Contents..")
    async with aiofiles.open(f"{directory}/filename") as f:
        contents = await f.read()
    assert contents == "Contents.."
    async with aiofiles.open(f"{directory}/filename") as f:
        async for line in f:
            assert line == "Contents.."


async def copy(directory: str) -> None:
    async with (
        aiofiles.open(f"{directory}/filename", "rb") as source,
        aio_open(f"{directory}/copy", "wb+") as target,
    ):
        while chunk := await source.read(4):
            await target.write(chunk)
        await target.flush()
        assert await target.seek(0) == 0
        assert await target.readlines() == [b"Contents.."]
        assert await target.readable()
        assert await target.seekable()
        assert target.name == f"{directory}/copy"
        assert await target.tell() == 10
        await target.truncate(4)
    assert await aiofiles.os.path.getsize(f"{directory}/copy") == 4


async def by_hand(directory: str) -> None:
    f = await aiofiles.open(f"{directory}/log", "a", encoding="utf-8", loop=None, executor=None)
    try:
        await asyncio.gather(*(f.write(f"line {i}\n") for i in range(100)))
        await f.writelines(["a\n", "b\n"])
    finally:
        await f.close()
    assert f.closed
    async with aiofiles.open(f"{directory}/log") as log:
        assert len(await log.readlines()) == 102


async def system(directory: str) -> None:
    await aiofiles.os.mkdir(f"{directory}/d")
    await aiofiles.os.makedirs(f"{directory}/d/e/f", exist_ok=True)
    await aiofiles.os.makedirs(f"{directory}/d/e/f", exist_ok=True)
    await aiofiles.os.rename(f"{directory}/copy", f"{directory}/d/copy")
    await aiofiles.os.replace(f"{directory}/d/copy", f"{directory}/d/other")
    await aiofiles.os.symlink("other", f"{directory}/d/link")
    assert await aiofiles.os.readlink(f"{directory}/d/link") == "other"
    await aiofiles.os.link(f"{directory}/d/other", f"{directory}/d/hard")
    assert (await aiofiles.os.stat(f"{directory}/d/hard")).st_nlink == 2
    assert sorted(await aiofiles.os.listdir(f"{directory}/d")) == ["e", "hard", "link", "other"]
    with await aiofiles.os.scandir(f"{directory}/d") as entries:
        assert len(list(entries)) == 4
    assert await aiofiles.os.access(f"{directory}/d", 4)
    assert await ospath.exists(f"{directory}/d/other")
    assert await aiofiles.os.path.isfile(f"{directory}/d/other")
    assert await aiofiles.os.path.isdir(f"{directory}/d")
    assert await aiofiles.os.path.islink(f"{directory}/d/link")
    await aiofiles.os.remove(f"{directory}/d/link")
    await aiofiles.os.unlink(f"{directory}/d/hard")
    await aiofiles.os.removedirs(f"{directory}/d/e/f")
    await aiofiles.os.renames(f"{directory}/d/other", f"{directory}/g/other")
    assert (await aiofiles.os.statvfs(directory)).f_bsize
    assert await aiofiles.os.path.samefile(directory, directory)


async def main(directory: str) -> None:
    await readme(directory)
    await copy(directory)
    await by_hand(directory)
    await system(directory)
    print("ok")


aiounify.run(main(sys.argv[1]))
