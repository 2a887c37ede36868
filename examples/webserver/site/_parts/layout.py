"""The frame around every page of this site: a module that pages share, by page.module()."""

import string
import time
from typing import Any


async def framed(page: Any, title: str, main: str) -> str:
    """The whole page: the layout is a dependency of whoever calls this."""
    layout = string.Template(await page.text("/_parts/layout.html"))
    footer = f"Built at {time.strftime('%H:%M:%S')}, and not again until something it used changes."
    return layout.substitute(title=title, main=main, footer=footer)
