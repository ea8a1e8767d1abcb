"""Links from pages to files of the repository that are no pages: on a site they become the file's path.

The same page is read in the repository, where the links work. One that leads nowhere fails a strict build.
"""

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parent.parent.parent
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>\.\.?/[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")
_log = logging.getLogger("mkdocs.hooks.repository_links")


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace links to files that are no pages."""
    here = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def replace(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, link["target"]))
        if path.startswith("docs/"):
            return link[0]
        if not (_ROOT / path).exists():
            _log.warning("%s: no %s in the repository", page.file.src_uri, path)
        return f"`{path}`" if link["text"].strip("`") in path else f"{link['text']} (`{path}`)"

    return _LINK.sub(replace, markdown)
