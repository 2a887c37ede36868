"""The notes by name, as a list; the names in the directory are the dependency."""

import html


async def page(page):
    items = []
    for name in await page.listdir():
        if name.endswith(".txt"):
            first = (await page.text(name)).partition("\n")[0]
            link = html.escape(name.removesuffix(".txt"))
            items.append(f'<li><a href="/notes/note?name={link}">{html.escape(first)}</a>')
    return f"<ul>{''.join(items)}</ul>"
