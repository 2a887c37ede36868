"""Files awaited through the kernel.

    import aiounify.files as aiofiles

serves a program written for aiofiles; docs/files.md tells what is different and what is more.
"""

from aiounify.files import os as os
from aiounify.files import tempfile as tempfile
from aiounify.files.direct import aligned_buffer as aligned_buffer
from aiounify.files.durable import SyncError as SyncError
from aiounify.files.durable import write_durable as write_durable
from aiounify.files.handle import open as open
from aiounify.files.path import Path as Path
from aiounify.files.splicing import Pipe as Pipe
from aiounify.files.splicing import splice as splice
from aiounify.files.status import Statx as Statx
from aiounify.files.stdio import stderr as stderr
from aiounify.files.stdio import stderr_bytes as stderr_bytes
from aiounify.files.stdio import stdin as stdin
from aiounify.files.stdio import stdin_bytes as stdin_bytes
from aiounify.files.stdio import stdout as stdout
from aiounify.files.stdio import stdout_bytes as stdout_bytes
from aiounify.files.whole import read_bytes as read_bytes
from aiounify.files.whole import read_text as read_text
from aiounify.files.whole import write_bytes as write_bytes
from aiounify.files.whole import write_text as write_text
