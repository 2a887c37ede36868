"""Files awaited through the kernel."""

from aiounify.files import tempfile as tempfile
from aiounify.files.path import Path as Path
from aiounify.files.splicing import Pipe as Pipe
from aiounify.files.splicing import splice as splice
from aiounify.files.stdio import stderr as stderr
from aiounify.files.stdio import stderr_bytes as stderr_bytes
from aiounify.files.stdio import stdin as stdin
from aiounify.files.stdio import stdin_bytes as stdin_bytes
from aiounify.files.stdio import stdout as stdout
from aiounify.files.stdio import stdout_bytes as stdout_bytes
