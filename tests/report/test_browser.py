"""The page as Chromium shows it."""

import base64
import copy

import pytest

from gradsurgery.report.report import write_report
from tests.results.records import RECORD, save_record, write_failure

EVIL = "<script>document.title = 'broken'</script>"
COLUMN = """
Array.from(document.querySelectorAll('#results tbody tr')).map(row => row.cells[%d].innerText)
"""
CLICK = "document.querySelectorAll('#results thead button')[%d].click()"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report of methods with long and with wicked names, a failure, and a plan."""
    folder = tmp_path_factory.mktemp("runs")
    means = {"deep-all": 0.5, "agr-sum": 0.62, EVIL: 0.55, "x" * 80: 0.41}
    for place, (method, mean) in enumerate(means.items()):
        for target in ("art_painting", "photo", "sketch"):
            if (place, target) == (2, "photo"):
                continue
            for seed in range(3):
                content = copy.deepcopy(RECORD)
                content["configuration"] |= {"method": method, "target": target, "seed": seed}
                content["result"]["best"]["target_accuracy"] = mean + seed / 100
                save_record(content, folder / target / f"method-{place}" / f"seed-{seed}")
    write_failure(folder / "failed", EVIL, f"{EVIL}\n{'a long line ' * 40}", method=EVIL)
    return write_report(folder).page


def test_it_loads_without_an_error_and_asks_for_nothing(browser, page):
    browser.open(page)
    asked = {event["request"]["url"] for event in browser.named("Network.requestWillBeSent")}
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file:")] == [page.resolve().as_uri()]
    assert not browser.named("Runtime.exceptionThrown")
    assert not browser.named("Runtime.consoleAPICalled")
    assert not browser.named("Log.entryAdded")
    assert not browser.named("Network.loadingFailed")


def test_names_with_markup_are_text(browser, page):
    browser.open(page)
    assert browser.evaluate("document.title") == "Domain generalization on pacs"
    assert EVIL in browser.evaluate("document.body.innerText")
    assert browser.evaluate("document.scripts.length") == 1


def test_every_picture_is_there(browser, page):
    browser.open(page)
    sizes = browser.evaluate("Array.from(document.images).map(image => image.naturalWidth)")
    assert len(sizes) == 3
    assert min(sizes) > 100
    assert all(browser.evaluate("Array.from(document.images).map(image => image.alt)"))


def test_tables_are_sorted_by_a_click(browser, page):
    browser.open(page)
    unsorted = browser.evaluate(COLUMN % 0)
    assert unsorted[0] == "deep-all"
    browser.evaluate(CLICK % 1)  # figures from the highest down
    shown = browser.evaluate(COLUMN % 1)
    assert [float(text.split()[0]) for text in shown] == [63, 56, 51, 42]
    header = "document.querySelectorAll('#results thead th')[1].getAttribute('aria-sort')"
    assert browser.evaluate(header) == "descending"
    browser.evaluate(CLICK % 1)
    assert browser.evaluate(COLUMN % 1) == shown[::-1]
    browser.evaluate(CLICK % 2)  # a cell without runs comes last, both ways
    assert browser.evaluate(COLUMN % 2)[-1] == "–"
    browser.evaluate(CLICK % 2)
    assert browser.evaluate(COLUMN % 2)[-1] == "–"
    browser.evaluate(CLICK % 0)  # names from a to z
    names = browser.evaluate(COLUMN % 0)
    assert [name[:8] for name in names] == ["<script>", "agr-sum", "deep-all", "x" * 8]


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_never_scrolls_sideways(browser, page, width):
    browser.open(page, width=width)
    browser.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    wide = """
    Array.from(document.querySelectorAll('.scroll')).filter(e => e.scrollWidth > e.clientWidth)
        .every(e => getComputedStyle(e).overflowX === 'auto' && e.tabIndex === 0)
    """
    assert browser.evaluate(wide)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_background(browser, page, scheme):
    scheme = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", features=scheme)
    browser.open(page)
    lowest = browser.evaluate(
        """
        (() => {
          const light = (color) => {
            const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(c => {
              c = c / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
            });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const behind = (e) => {
            const color = getComputedStyle(e).backgroundColor;
            const seen = color !== 'rgba(0, 0, 0, 0)' || !e.parentElement;
            return seen ? color : behind(e.parentElement);
          };
          return Math.min(...Array.from(
            document.querySelectorAll('p, li, th, td, a, small, figcaption, summary, button')
          ).map(e => {
            const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          }));
        })()
        """
    )
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert lowest >= 4.5  # WCAG 2.1, level AA


def test_links_lead_to_the_records(browser, page):
    browser.open(page)
    links = browser.evaluate(
        "Array.from(document.querySelectorAll('#runs td a')).map(link => link.getAttribute('href'))"
    )
    assert len(links) == 33
    assert all((page.parent / link).is_file() for link in links)


def test_it_prints_with_everything_unfolded(browser, page):
    browser.open(page)
    content = base64.b64decode(browser.call("Page.printToPDF", printBackground=False)["data"])
    assert content.startswith(b"%PDF-")
    assert len(content) > 20_000
