"""The pages in a real browser: nothing is fetched, no error on the console, hostile completions stay text."""

import json
import re
import shutil
import subprocess

import pytest
from factory_results import fill, result

from stagealign.report import build as report
from stagealign.store.results import write_result

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    fill(folder / "results", seeds=1)
    for cell in ("zephyr-dpo-1off", "zephyr-dpo-1on"):
        made = json.loads(json.dumps(result(cell)))
        key = sorted(made["start"]["test"]["prompts"])[0]
        texts = {"start": [HOSTILE], "round 1": [HOSTILE, "fine"]}
        made["samples"] = [{"prompt": key, "text": HOSTILE, "completions": texts}]
        write_result(folder / "results", made)
    report.write(folder / "results", folder / "reports", "lab")
    return folder / "reports"


def opened(page, profile, width=1200):
    """The page's document after its scripts have run, and what the browser logged."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--enable-logging=stderr", f"--window-size={width},900",
               f"--user-data-dir={profile}", "--dump-dom"]  # fmt: skip
    done = subprocess.run(
        [BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True, encoding="utf-8"
    )
    return done.stdout, re.findall(r".*CONSOLE.*", done.stderr)


@pytest.mark.parametrize("name", ["index.html", "lab/index.html", "lab/zephyr-dpo.html"])
@pytest.mark.parametrize("width", [1200, 400])
def test_pages_open_without_errors_and_run_nothing_that_was_planted(reports, tmp_path, name, width):
    document, console = opened(reports / name, tmp_path, width)
    assert not console
    title = re.search(r"<title>(.*?)</title>", document).group(1)
    assert title.startswith("stagealign")
    assert "owned" not in title
    assert "<img" not in document
    assert "</html>" in document


def test_the_planted_text_can_be_read(reports, tmp_path):
    document, _ = opened(reports / "lab/zephyr-dpo.html", tmp_path)
    assert document.count("&lt;script&gt;document.title='owned'&lt;/script&gt;") >= 2


def test_a_click_on_a_head_sorts(reports, tmp_path):
    """Gains of every rung, up and then down; without a click the order is that of the results."""
    text = (reports / "lab/index.html").read_text("utf-8")
    found = []
    for clicks in range(3):
        click = "document.querySelector('table.ladder th:nth-child(6)').click();" * clicks
        page = reports / "lab" / "clicked.html"
        page.write_text(text.replace("</body>", f"<script>{click}</script></body>"), "utf-8")
        document, console = opened(page, tmp_path / str(clicks))
        page.unlink()
        assert not console
        rows = re.search(r'<table class="ladder">.*?</table>', document, re.DOTALL).group()
        shown = re.findall(r'data-label="Gain"><span>([^<]*)', rows)
        found.append([float(re.match(r"\S+?(?=\s|&|$)", one.replace("−", "-")).group()) for one in shown if one != "–"])
    assert found[0] not in (sorted(found[0]), sorted(found[0], reverse=True))
    assert found[1] == sorted(found[0])
    assert found[2] == sorted(found[0], reverse=True)


def test_the_browser_would_have_told(tmp_path):
    """The same markup unescaped does run, so the tests above can fail."""
    page = tmp_path / "bad.html"
    page.write_text(f"<!doctype html><title>stagealign</title>{HOSTILE}<script>console.error('no')</script>", "utf-8")
    document, console = opened(page, tmp_path / "profile")
    assert "<title>owned</title>" in document
    assert console
