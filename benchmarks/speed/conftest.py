"""`pytest benchmarks/speed -k sampling`: one item for each row. `pytest benchmarks` ignores this folder."""

from pathlib import Path


def pytest_addoption(parser):
    group = parser.getgroup("stagealign speed")
    group.addoption("--small", action="store_true", help="Thin models, for seconds; plumbing only.")
    group.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="Device of the models.")
    group.addoption("--repeats", type=int, default=3, help="Turns of each row.")
    group.addoption("--threads", type=int, default=2, help="Threads of torch; at most the idle cores.")
    group.addoption("--out", type=Path, help="Folder of the results; results/speed/<device> unless --small.")


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        from stagealign.report.pages.aims import ROWS

        device = metafunc.config.getoption("device")
        metafunc.parametrize("row", [row.key for row in ROWS if device in row.devices])
