"""What blocks goes to a thread: the sizes of all files below the site."""

from pathlib import Path


def sizes(root):
    return sorted((str(p.relative_to(root)), p.stat().st_size) for p in root.glob("**/*.*"))


async def page(page):
    found = await page.run_blocking(sizes, Path(__file__).parent)
    page.expires_in(5)  # what a thread looks at is no dependency
    rows = "".join(f"<tr><td>{name}<td>{size}" for name, size in found if not name.endswith(".pyc"))
    frame = await page.module("_parts/layout.py")
    return await frame.framed(page, "Files", f"<h1>Files</h1><table>{rows}</table>")
