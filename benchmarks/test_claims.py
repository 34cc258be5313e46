"""Checks each claim of the scale against the recorded results; runs nothing.

Claims and tolerances are in `stagealign.grid.claims`, written before the runs. A claim fails if it was not reproduced,
or only in its direction. It is skipped if it was not run or is under-powered.
"""

import pytest

from stagealign.grid.claims import CLAIMS
from stagealign.report.read.verdicts import REPRODUCED, UNDER_POWERED

NO_RESULTS = "not run: no {}-scale results"


@pytest.fixture(scope="session")
def judged(pytestconfig):
    """Verdict by claim key, from the results folder."""
    from stagealign.report.read.book import open_book
    from stagealign.report.read.contrasts import contrasts
    from stagealign.report.sections.claims import verdicts

    folder = pytestconfig.getoption("results") or pytestconfig.rootpath / "results"
    book = open_book(folder, pytestconfig.getoption("scale"))
    if not book.results:
        pytest.skip(NO_RESULTS.format(book.scale))
    return {verdict.claim.key: verdict for verdict in verdicts(book, contrasts(book))}


# Ids are numbers: keys hold names of models, and `-k llama3` is one row of the grid.
@pytest.mark.parametrize("claim", CLAIMS, ids=[f"claim{number:02}" for number in range(len(CLAIMS))])
def test_claim(claim, judged, pytestconfig):
    if claim.scale != pytestconfig.getoption("scale"):
        pytest.skip(f"a claim of scale {claim.scale}")
    verdict = judged[claim.key]
    text = f"{claim.words} {verdict.state}: {verdict.why}"
    if verdict.estimate is None or verdict.state == UNDER_POWERED:
        pytest.skip(text)
    if verdict.state != REPRODUCED:
        pytest.fail(f"{text}; found {verdict.estimate.shown}", pytrace=False)
