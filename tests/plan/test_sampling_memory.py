"""What `plan` counts for sampling beside measured peaks, on a CPU: three shapes, each bound by another part."""

import sys

import pytest

from benchmarks.sampling_memory import QUICK, measure
from stagealign.grid import select
from stagealign.plan.flops import GIB
from stagealign.plan.needs import needs_of
from stagealign.plan.plan import make_plan
from stagealign.store.artifact import Devices
from stagealign.store.folder import Store


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("shape", QUICK, ids=lambda shape: shape.name)
def test_the_estimate_is_within_15_percent_of_a_measured_peak(shape):
    found = measure(shape)
    assert found.peak > 150 * 2**20, "large beside what a process holds anyway"
    assert 0.85 < found.ratio < 1.15, f"{found.estimate / 2**20:.0f} MiB for {found.peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("model", ["llama3", "zephyr", "phi2", "qwen", "pythia"])
def test_plan_counts_what_the_scales_gpu_lends_and_needs_what_one_row_takes(model, tmp_path):
    """An H200 has 139 GiB; with 256 rows of 2,048 new tokens the 7B and 8B models would take 90 to 300 GiB."""
    plan = make_plan(select.select("paper", f"{model} and dpo-2off_on"), (0,), Store(tmp_path))
    sampled = [item for item in plan.items if item.artifact.role in ("candidates", "completions", "answers")]
    costs = [item.cost for item in sampled if item.cost.memory]
    assert costs
    for cost in costs:
        assert 4 * GIB < cost.needed < 25 * GIB
        assert cost.needed < cost.memory < 125 * GIB
    large = [item for item in sampled if item.cost.memory]
    assert all(needs_of(item.artifact, item.scale, Devices()).device_memory == item.cost.needed for item in large), (
        "a smaller GPU takes fewer rows"
    )
