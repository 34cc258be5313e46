"""Sources of a round's candidates, and the schedules: the source of each round."""

from stagealign.grid.spec import Source

SOURCES = {
    "off": Source("off", "static candidates of a fixed set", on_policy=False),
    "on": Source("on", "samples of the policy in training", on_policy=True),
    "llama": Source("llama", "samples of Llama-3 (PC_llama)", on_policy=False, sampled_from="llama3", extra=True),
}
GRID = {
    "1off": ("off",),
    "1on": ("on",),
    "2off_off": ("off", "off"),
    "2off_on": ("off", "on"),
    "2on_off": ("on", "off"),
    "2on_on": ("on", "on"),
}
"""Schedules of every model and method; an extra source adds three: alone, after `off` and after `on`."""
SCHEDULES = GRID | {
    f"{len(sources)}{'_'.join(sources)}": sources
    for source in SOURCES.values()
    if source.extra
    for sources in ((source.key,), ("off", source.key), ("on", source.key))
}
