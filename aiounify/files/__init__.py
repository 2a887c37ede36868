"""Files awaited through the kernel."""

from aiounify.files.splicing import Pipe as Pipe
from aiounify.files.splicing import splice as splice
