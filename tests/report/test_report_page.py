"""The report's pages from made-up results: escaping, same bytes, and a check that notices."""

import json
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import PurePosixPath
from xml.etree import ElementTree

import pytest
from factory_report import SCRIPT
from factory_results import result

from stagealign.base.errors import StagealignError
from stagealign.grid import select
from stagealign.report import build as report
from stagealign.store.results import write_result


class Page(HTMLParser):
    """Collects tags, links and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.links.append(value)

    def handle_data(self, data):
        self.words.append(data)


def test_nothing_from_a_result_becomes_markup(built):
    page = Page(built["lab/index.html"])
    assert page.tags.count("script") == 1
    assert SCRIPT in "".join(page.words)
    assert "alert(1)" in built["lab/index.html"]
    assert built["lab/index.html"].count("<script") == 1, "our own, which sorts tables"
    assert "<script" not in built["lab/README.md"]
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \| a\*b\_c \`d\`" in built["lab/README.md"]


def test_the_page_needs_nothing_else(built):
    pages = [name for name in built if name.endswith(".html")]
    assert "lab/zephyr-dpo.html" in pages
    for name in pages:
        page = Page(built[name])
        assert len(page.ids) == len(set(page.ids)), "an id stands twice"
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
        here = PurePosixPath(name).parent
        others = {os.path.normpath(here / link) for link in page.links if not link.startswith("#")}
        assert others <= set(pages)
        assert not re.search(r"url\((?!#)|@import|<link|<img", built[name])
        assert "prefers-color-scheme: dark" in built[name]
        assert 'name="viewport"' in built[name]


def test_the_front_page_says_of_every_scale_what_was_judged(built):
    for name in ("index.html", "README.md"):
        assert "Scale lab, stand-ins on a laptop CPU: " in built[name]
        assert "Scale paper, the real models on GPUs: not run" in built[name]
        assert "Zephyr's stand-in" in built[name].replace("&#39;", "'")
        assert "smoke" not in built[name]
        assert built[name].count("<script") == (name == "index.html")


def test_completions_stand_beside_each_other_and_the_best_is_marked(tmp_path):
    for cell, sources in (("zephyr-dpo-1off", ("off",)), ("zephyr-dpo-1on", ("on",))):
        made = result(cell)
        key = sorted(made["start"]["test"]["prompts"])[0]
        texts = {"start": ["so so"], "round 1": [SCRIPT, f"after {sources[0]}"]}
        write_result(tmp_path, made | {"samples": [{"prompt": key, "text": "Write <b>one</b>.", "completions": texts}]})
    page = report.build(tmp_path, "lab")["lab/zephyr-dpo.html"]
    table = page[page.index('<table class="samples">') :]
    assert [w for w in Page(table[: table.index("</thead>")]).words if w.strip()] == ["Prompt", "before", "off", "on"]
    assert SCRIPT not in page
    assert "Write &lt;b&gt;one&lt;/b&gt;." in table
    assert table.count('class="won"') == 1
    assert "so so" in table
    assert table.index("after off") < table.index("after on")


def test_first_line_names_commit_and_command(built):
    for name in ("lab/index.html", "lab/README.md"):
        first = built[name].splitlines()[0]
        assert "stagealign report --scale lab" in first
        assert "commit 0123456789ab" in first


def test_tables_of_the_markdown_page_are_whole(built):
    lines = built["lab/README.md"].splitlines()
    for line, following in pairwise(lines):
        if line.startswith("|") and following.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", following))


def test_figures_are_well_formed_and_undated(built):
    for name in ("lab/gains.svg", "lab/boundary.svg", "lab/rule.svg", "lab/frontier.svg"):
        ElementTree.fromstring(built[name])
        assert not re.search(r"<dc:date|Matplotlib|matplotlib\.org", built[name])
    assert "stand-in" in built["lab/gains.svg"]


def test_same_results_same_bytes(results, built):
    assert report.build(results, "lab") == built


def test_the_first_screen_says_what_came_of_the_central_claim(results):
    """Also that a constant choice did better, where it did: a share of right names alone would flatter the score."""
    from stagealign.report.pages.front import with_demo

    front = report.build(results, "lab")
    said = re.search(r"\*\*The central claim\.\*\* (The boundary score named .*)", front["README.md"])[1]
    assert re.search(r"in (\d+) of (\d+) decided cases?", said)
    right = int(re.search(r"in (\d+) of", said)[1])
    best = max(
        int(n) for n in re.findall(r"policy would have been right in (\d+)|always on-policy in (\d+)", said)[0] if n
    )
    assert ("A constant choice" in said) == (right <= best)
    assert said in with_demo("<!-- demo: x -->\n<!-- /demo -->\n", results, select.select("lab", "zephyr"), "reports")


def test_check_notices_every_change(tmp_path):
    results = tmp_path / "results"
    write_result(results, result("zephyr-dpo-1off"))
    assert report.check(results, tmp_path, "lab") == [
        "README.md",
        "index.html",
        "lab/README.md",
        "lab/boundary.svg",
        "lab/gains.svg",
        "lab/index.html",
        "lab/zephyr-dpo.html",
    ]
    written = report.write(results, tmp_path, "lab")
    assert {path.name for path in written} == {
        "index.html",
        "README.md",
        "gains.svg",
        "boundary.svg",
        "zephyr-dpo.html",
    }
    assert report.check(results, tmp_path, "lab") == []
    page = tmp_path / "lab" / "README.md"
    page.write_text(page.read_text(encoding="utf-8") + "by hand\n", encoding="utf-8")
    (tmp_path / "lab" / "old.svg").write_text("<svg/>", encoding="utf-8")
    assert report.check(results, tmp_path, "lab") == ["lab/README.md", "lab/old.svg"]
    report.write(results, tmp_path, "lab")
    assert report.check(results, tmp_path, "lab") == []


def test_check_notices_a_changed_result(tmp_path):
    folder = tmp_path / "results"
    path = write_result(folder, result("zephyr-dpo-1off"))
    report.write(folder, tmp_path / "reports", "lab")
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["rounds"][0]["rungs"][0]["kl"]["value"] += 1
    path.write_text(json.dumps(changed), encoding="utf-8")
    assert "lab/index.html" in report.check(folder, tmp_path / "reports", "lab")


def test_no_results_is_an_error_with_the_command(tmp_path):
    with pytest.raises(StagealignError, match="stagealign run --scale lab"):
        report.write(tmp_path, tmp_path, "lab")
    assert report.check(tmp_path, tmp_path, "lab") == []
