"""The site as it is built: pages, links, formulas, search, and what it asks the network for."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from gradsurgery.cli.main import COMMANDS
from tests.website.conftest import ROOT

pytest.importorskip("mkdocs", reason="mkdocs is not installed; the extra docs has it")


class Links(HTMLParser):
    """The addresses a page leads to or loads, and the places in it that can be led to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        if tag == "a" and attributes.get("href"):
            self.targets.append(attributes["href"])
        elif tag in ("script", "img", "iframe", "source") and attributes.get("src"):
            self.loaded.append(attributes["src"])
        elif tag == "link" and attributes.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(attributes["href"])


@pytest.fixture(scope="session")
def pages(site) -> dict[Path, Links]:
    return {page: Links(page) for page in site.rglob("*.html")}


def test_every_link_leads_to_a_page_and_a_place_in_it(pages, site):
    broken = []
    for page, links in pages.items():
        if page.name == "404.html":  # its addresses are those of a server's root
            continue
        for target in links.targets + links.loaded:
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            other = (page.parent / unquote(address.path)).resolve() if address.path else page
            found = other.exists()
            if found and address.fragment and other in pages:
                found = unquote(address.fragment) in pages[other].anchors
            if not found:
                broken.append((str(page.relative_to(site)), target))
    assert not broken


def test_nothing_is_loaded_from_the_network(pages):
    assert not [
        (page, address)
        for page, links in pages.items()
        for address in links.loaded
        if urlsplit(address).scheme not in ("", "data")
    ]


def test_every_page_of_the_docs_is_in_the_navigation(site):
    start = Links(site / "index.html").targets
    for page in (ROOT / "docs").rglob("*.md"):
        if page.with_suffix(".json").exists():  # a study's own tables, which its page links to
            continue
        place = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert place in start or place == "index.html", f"{place} is in no menu"


def test_the_commands_are_those_there_are(site):
    text = (site / "commands.html").read_text(encoding="utf-8")
    headings = re.findall(r'<h2 id="gradsurgery-([\w-]+)"', text)
    assert set(COMMANDS) <= set(headings)
    assert "--learning-rate" in text


def test_public_names_have_their_docstrings(site):
    text = (site / "api" / "gradsurgery.html").read_text(encoding="utf-8")
    assert 'id="gradsurgery.backward"' in text
    assert "<code>losses</code>: one scalar loss per source domain." in text
    assert "&gt;&gt;&gt;" in text


def test_formulas_are_set_by_the_browser_itself(site):
    text = (site / "formulas.html").read_text(encoding="utf-8")
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML"') > 20
    assert "arithmatex" not in text
    assert "$$" not in text


def test_no_dollar_of_a_formula_is_left(site):
    for page in site.rglob("*.html"):
        assert not re.search(r"<p>[^<]*\$\$", page.read_text(encoding="utf-8")), page


def test_the_navigation_names_no_page_twice():
    nav = re.findall(r"[\w/-]+\.md", yaml.safe_dump(_nav()))
    assert len(nav) == len(set(nav))


def _nav() -> object:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return yaml.safe_load(text)["nav"]


@pytest.mark.parametrize("width", [390, 1400])
def test_pages_fit_the_screen_and_load_without_an_error(browser, site, width):
    for name in ("index", "formulas", "commands", "methods", "api/gradsurgery"):
        browser.open(site / f"{name}.html", width)
        asked = {event["request"]["url"] for event in browser.named("Network.requestWillBeSent")}
        assert {urlsplit(url).scheme for url in asked} <= {"file", "data", "blob"}
        assert not browser.named("Runtime.exceptionThrown")
        assert not browser.named("Network.loadingFailed")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_the_search_finds_a_page_without_a_server(browser, site):
    browser.open(site / "index.html", 1400)
    browser.evaluate("document.querySelector('.md-search__input').focus()")
    browser.call("Input.insertText", text="conflict averse")
    found = "document.querySelectorAll('.md-search-result__link').length"
    end = time.monotonic() + 30
    while not browser.evaluate(found) and time.monotonic() < end:
        time.sleep(0.1)
    assert browser.evaluate(found) > 0
    addresses = "[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
    assert any("formulas.html" in address for address in browser.evaluate(addresses))


def test_the_index_of_the_search_has_pages_of_every_kind(site):
    entries = json.loads((site / "search" / "search_index.json").read_text("utf-8"))["docs"]
    places = {entry["location"].partition("#")[0] for entry in entries}
    assert {"formulas.html", "commands.html", "api/gradsurgery.html", "changelog.html"} <= places
