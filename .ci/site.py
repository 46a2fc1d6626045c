"""The documentation site's pages that lie outside docs/, and links to files that are not pages; see mkdocs.yml."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}


def on_files(files, config):
    """Add the pages that lie at the top of the repository."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Let links lead to pages of the site; a file of the repository that is none is named without a link.

    What is not there either is left to mkdocs, which refuses it.
    """
    sources = {site: name for name, site in PAGES.items()}
    folder = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def link(found: re.Match) -> str:
        text, target, anchor = found.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        site = PAGES.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if site is None:
            return text if (ROOT / path).exists() else found[0]
        return f"[{text}]({site}{anchor or ''})"

    return re.sub(r"\[([^]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)", link, markdown)
