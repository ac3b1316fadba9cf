"""Pages made at build time: the command line, docstrings, notebooks, files outside of docs/."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent.parent))

from website import interface, notebooks, terminal

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks.md": "benchmarks/README.md",
}
"""Pages of the site that are files outside of docs/."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, and what the pages load."""
    made = {name: (ROOT / place).read_text("utf-8") for name, place in ELSEWHERE.items()}
    made |= interface.pages() | notebooks.pages() | {"commands.md": terminal.page()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for asset in sorted((ROOT / "website" / "assets").iterdir()):
        place = f"assets/{asset.name}"
        files.append(File.generated(config, place, abs_src_path=str(asset)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Let links to files outside of docs/ lead to their pages here."""
    place = ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = (ROOT / place).parent
    homes = {(ROOT / file).resolve(): name for name, file in ELSEWHERE.items()}

    def here(found: re.Match[str]) -> str:
        path, anchor = found.groups()
        if re.match(r"\w+:", path):
            return found[0]
        target = (folder / path).resolve()
        if target in homes:
            name = homes[target]
        elif target.is_relative_to(ROOT / "docs"):
            name = target.relative_to(ROOT / "docs").as_posix()
        else:
            return found[0]
        up = "../" * page.file.src_uri.count("/")
        return f"]({up}{name}{anchor or ''})"

    return re.sub(r"\]\(([^)#\s]+)(#[^)]*)?\)", here, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Take the search of pages that are opened as files from the site, not from the network."""
    return _local(output, "../" * page.file.dest_uri.count("/"))


def on_post_template(output_content: str, template_name: str, config: Any) -> str:
    """The same for the page that a server shows for a wrong address."""
    return _local(output_content, "")


def _local(content: str, up: str) -> str:
    return content.replace("https://unpkg.com/iframe-worker/shim", f"{up}assets/iframe-worker.js")
