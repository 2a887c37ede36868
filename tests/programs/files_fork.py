"""Files in a process, and in a child that was forked after their first use."""

import os
import sys
import warnings

import aiounify
import aiounify.files as files

warnings.simplefilter("ignore", DeprecationWarning)  # fork() beside threads, which is the point


async def main() -> int:
    await files.write_text(sys.argv[1], "hello")
    async with files.open(sys.argv[1]) as f:
        f.buffer.nowait = 0
        return len(await f.read())


aiounify.run(main())
pid = os.fork()
if pid == 0:
    print("child read", aiounify.run(main()), flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print("parent read", aiounify.run(main()))
