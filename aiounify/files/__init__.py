"""Files awaited through the kernel.

    import aiounify.files as aiofiles

serves a program written for aiofiles; docs/files.md tells what is different and what is more.
"""

from aiounify.files import os as os
from aiounify.files.direct import aligned_buffer as aligned_buffer
from aiounify.files.handle import open as open
from aiounify.files.status import Statx as Statx
from aiounify.files.whole import read_bytes as read_bytes
from aiounify.files.whole import read_text as read_text
from aiounify.files.whole import write_bytes as write_bytes
from aiounify.files.whole import write_text as write_text
