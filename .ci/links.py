"""Links of the site: a page may link to any file of the repository, by the path that a forge needs.

`docs/` is the root of the site. A file elsewhere that a page links to becomes a part of the site under its path in the
repository; Markdown becomes a page.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|[#/])([^)#\s]+)")
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "results/README.md")  # pages of the navigation


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside `docs/` that pages link to."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for page in files.documentation_pages():
        for path in _linked(page):
            if not path.startswith("docs/") and files.get_file_from_path(path) is None and (ROOT / path).is_file():
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make a page's links those of the site."""
    folder = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(_place(page.file)), found[1]))
        return posixpath.relpath(path.removeprefix("docs/"), folder or ".")

    return LINK.sub(link, markdown)


def _linked(page: File) -> Iterator[str]:
    """The paths in the repository that a page links to."""
    for target in LINK.findall(page.content_string):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(_place(page)), target))


def _place(page: File) -> str:
    """The path of a page in the repository."""
    return page.src_uri if page.generated_by else f"docs/{page.src_uri}"
