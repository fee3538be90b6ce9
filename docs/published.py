"""A hook of mkdocs: the logs, reports and figures of results/published become pages of the site.

Pages link to them by their path in the repository, so that the links also work where the files are read as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "results/published"
SHOWN = ("*.md", "*/*.md", "*/*/*.md", "*/figures/*.png", "*/*/figures/*.png")


def on_files(files: Files, config: Any) -> Files:
    """Add what is published to the files of the site."""
    for path in sorted({path for pattern in SHOWN for path in (ROOT / FOLDER).glob(pattern)}):
        file = File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        file.inclusion = InclusionLevel.NOT_IN_NAV  # results.md links to them
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to results/published at the site's copy."""
    is_ours = not page.file.src_uri.startswith(FOLDER)
    return markdown.replace(f"](../{FOLDER}/", f"]({FOLDER}/") if is_ours else markdown
