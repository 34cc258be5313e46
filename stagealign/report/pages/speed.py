"""Table and figure of the speed benchmark's results.

Unmeasured rows stay in the table, with the command that measures them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stagealign.report.pages.aims import ROWS, Against, SpeedRow
from stagealign.report.pages.speed_results import (
    COMMAND,
    DEVICES,
    SpeedRatio,
    SpeedResult,
    SpeedResults,
    SpeedTurn,
    ratio_of,
    read,
)
from stagealign.report.sections.rows import Table, TableRow
from stagealign.report.sections.words import DASH, NOT_MEASURED

ABOUT = (
    "How many times as fast as the peer, on a logarithmic scale: median of the turns, with the least and the most. "
    "Grey line: equal speed. Orange tick: target."
)


def table(speeds: SpeedResults) -> Table:
    """Table with one line for each comparison, CPU and GPU side by side, unmeasured rows included."""
    lines = [line for row in ROWS for line in _lines(row, speeds)]
    note = (
        "Ours and each peer run in turns on the same weights, data and threads, after a check of equal outputs. "
        "Ratio: median of the turns [least, most]; beside it in processor time, which other programs on the machine "
        f"disturb least. {' '.join(machines(speeds))}"
    )
    columns = ("what", "against", *(text for name in DEVICES.values() for text in (name, f"aim, {name}")))
    return Table("speed", "Speed", note, columns, tuple(lines))


def machines(speeds: SpeedResults, escaped: Callable[[str], str] = str) -> list[str]:
    """One sentence for each device: its machines, or the command that measures it. `escaped` escapes machine names."""
    sentences = []
    for device, name in DEVICES.items():
        known = list(dict.fromkeys(escaped(_machine(result)) for result in speeds[device].values()))
        text = "; ".join(known) if known else f"not measured; `{COMMAND[device]}` fills it"
        sentences.append(f"{name}: {text}.")
    return sentences


def _machine(result: SpeedResult) -> str:
    machine = result["made"]["hardware"]
    gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""
    versions = ", ".join(f"{name} {number}" for name, number in result["made"]["packages"].items())
    return f"{gpu}{machine['processor']}, {machine['cores']} cores, threads: {machine['threads']}, {versions}"


def _lines(row: SpeedRow, speeds: SpeedResults) -> list[TableRow]:
    if row.against:
        return [
            _line(
                row, comparison.ours, comparison.peer, [_ratio(row, comparison, speeds, device) for device in DEVICES]
            )
            for comparison in row.against
        ]
    if row.limits:
        return [
            _line(row, name, "", [_time(row, name, most, speeds, device) for device in DEVICES])
            for name, most in row.limits
        ]
    return [_line(row, "", "", [_growth(row, speeds, device) for device in DEVICES])]


def _line(row: SpeedRow, ours: str, peer: str, cells: Sequence[tuple[str, str]]) -> TableRow:
    what = row.title + (f"\n{ours}" if ours not in ("", "ours") else "")
    texts = [text for pair in cells for text in pair]
    measured = any(text not in (NOT_MEASURED, DASH) for text in texts[::2])
    return TableRow((what, peer or DASH, *texts), "done" if measured else "not run")


def _result(row: SpeedRow, speeds: SpeedResults, device: str) -> SpeedResult | str:
    if device not in row.devices:
        return DASH
    return speeds[device].get(row.key, NOT_MEASURED)


def _ratio(row: SpeedRow, comparison: Against, speeds: SpeedResults, device: str) -> tuple[str, str]:
    """(measured ratio, target with whether it was reached); the target may be about memory."""
    result, aim = _result(row, speeds, device), comparison.aim(device)
    asked = f"{aim:g}x" if aim else f"at most {comparison.memory:g} of its memory" if comparison.memory else DASH
    if isinstance(result, str):
        return result, DASH if result == DASH else asked
    ratio = ratio_of(result, comparison)
    if ratio is None:
        return NOT_MEASURED, asked
    if comparison.memory:
        reached = ratio["memory"] <= comparison.memory
        return f"{ratio['memory']:.2f} of its memory\n{_times(ratio)}", f"{asked}: {_word(reached)}"
    memory = f"\n{ratio['memory']:.2f} of its memory" if "memory" in ratio else ""
    text = f"{_times(ratio)}{memory}{_extra(result, comparison)}"
    if not aim or ratio["time"]["median"] >= aim:
        return text, f"{asked}: reached" if aim else asked
    return text, f"{asked}: not reached{_bound(result, comparison, ratio)}"


def _bound(result: SpeedResult, comparison: Against, ratio: SpeedRatio) -> str:
    """Ratio that our side would have at the machine's peak rate, an upper limit; empty if unknown."""
    shares = sorted(run["roof_percent"] for run in result["runs"][comparison.ours] if "roof_percent" in run)
    if not shares or not shares[len(shares) // 2]:
        return ""
    return f"; at the roof it would be {100 * ratio['time']['median'] / shares[len(shares) // 2]:.1f}x"


def _times(ratio: SpeedRatio) -> str:
    time, work = ratio["time"], ratio["processor"]["median"]
    return f"{time['median']:.1f}x [{time['least']:.1f}, {time['most']:.1f}], processor {work:.1f}x"


def _extra(result: SpeedResult, comparison: Against) -> str:
    """Share of the machine's peak rate, and remarks for this row."""
    runs = result["runs"][comparison.ours]
    text = ""
    if all("roof_percent" in run for run in runs):
        sides = (comparison.ours, comparison.peer)
        mine, its = (max(run["roof_percent"] for run in result["runs"][side]) for side in sides)
        text += f"\n{mine:.1f}% of the roof, peer {its:.1f}%"
    if "recorded_forwards" in runs[0]:
        peer = result["runs"][comparison.peer][0]
        text += f"\nreference tokens {runs[0]['reference_tokens']:,}, peer {peer['reference_tokens']:,}"
    if "decision" in result and "bf16" in comparison.ours:
        decision = result["decision"]
        text += (
            f"\nprefers as fp32 on {100 * decision['same_preference']:.0f}% of {decision['held_out']} held-out pairs"
        )
    return text


def _word(reached: bool) -> str:
    return "reached" if reached else "not reached"


def _time(row: SpeedRow, name: str, most: float, speeds: SpeedResults, device: str) -> tuple[str, str]:
    result = _result(row, speeds, device)
    if isinstance(result, str):
        return result, DASH if result == DASH else f"{most:g} s"
    times = result["times"].get(name)
    if times is None:
        return result["left_out"].get(name, NOT_MEASURED), f"{most:g} s"
    took, work = times["seconds"], times["cpu_seconds"]["median"]
    text = f"{took['median']:.2f} s [{took['least']:.2f}, {took['most']:.2f}], processor {work:.2f} s"
    return text, f"{most:g} s: {_word(took['median'] <= most)}"


def _growth(row: SpeedRow, speeds: SpeedResults, device: str) -> tuple[str, str]:
    result = _result(row, speeds, device)
    asked = f"at most {row.exponent:g}" if row.exponent else DASH
    if isinstance(result, str):
        return result, asked
    points, grown = result["points"], result["exponents"]
    first, last = points[0], points[-1]
    text = (
        f"exponent {grown['seconds']:.2f}, processor {grown['cpu_seconds']:.2f}\n{first['size']:,} to {last['size']:,} "
        f"{row.unit}: {first['seconds']:.1f} to {last['seconds']:.1f} s, {first['peak_mb']:,} to {last['peak_mb']:,} MB"
    )
    return text, f"{asked}: {_word(grown['seconds'] <= row.exponent)}" if row.exponent else asked


def figure(speeds: SpeedResults) -> str | None:
    """SVG of all ratios on one axis; None if nothing was measured."""
    from stagealign.report.sections.drawing import render

    drawn = [
        (device, row, comparison, ratio)
        for device in DEVICES
        for row in ROWS
        if row.key in speeds[device]
        for comparison in row.against
        if (ratio := ratio_of(speeds[device][row.key], comparison)) and not comparison.memory
    ]
    return render("speed", ABOUT, lambda: _draw(drawn)) if drawn else None


def _draw(drawn: Sequence[tuple[str, SpeedRow, Against, SpeedRatio]]) -> Any:
    from matplotlib.figure import Figure

    from stagealign.report.sections.drawing import FAINT, SOURCE_COLOUR, WIDTH

    picture = Figure(figsize=(WIDTH, 0.36 * len(drawn) + 0.9), layout="constrained")
    axis: Any = picture.subplots()
    names = []
    for place, (device, row, comparison, ratio) in enumerate(drawn):
        time = ratio["time"]
        axis.plot([time["least"], time["most"]], [place, place], color=SOURCE_COLOUR["off"], linewidth=1.5)
        axis.plot([time["median"]], [place], color=SOURCE_COLOUR["off"], marker="o", markersize=5, linestyle="")
        aim = comparison.aim(device)
        if aim:
            axis.plot([aim], [place], color=SOURCE_COLOUR["on"], marker="|", markersize=11, linestyle="")
        ours = "" if comparison.ours == "ours" else f", {comparison.ours.removeprefix('ours ')}"
        names.append(f"{row.title}{ours}\nagainst {comparison.peer}" + (" (GPU)" if device == "cuda" else ""))
    axis.axvline(1, color=FAINT, linewidth=0.8)
    axis.set_xscale("log")
    most = max(ratio["time"]["most"] for *_, ratio in drawn)
    ticks = [tick for tick in (0.3, 1, 3, 10, 30, 100, 300) if tick <= max(1, 1.3 * most)]
    axis.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axis.minorticks_off()
    axis.set_yticks(range(len(drawn)), names)
    axis.invert_yaxis()
    axis.set_xlabel("times as fast")
    return picture


def page(results: Path) -> dict[str, str]:
    """Text of `speed.html` by name; empty if nothing was measured."""
    from markupsafe import Markup

    from stagealign.report.pages.page import environment

    speeds = read(results)
    if not any(speeds.values()):
        return {}
    svg = figure(speeds)
    drawn = Markup(svg) if svg else None  # our own SVG: matplotlib escapes its texts
    values = {"table": table(speeds), "figure": drawn, "about": ABOUT, "runs": _runs(speeds)}
    return {"speed.html": environment().get_template("speed.html.j2").render(values)}


def _runs(speeds: SpeedResults) -> Table:
    """Table of every turn of every side, folded."""
    lines = []
    for device, rows in speeds.items():
        for row in ROWS:
            result = rows.get(row.key)
            for side, runs in result.get("runs", {}).items() if result else ():
                lines += [_run(row, side, run, device) for run in runs]
    columns = ("what", "side", "device", "seconds", "processor seconds", "speed", "tokens/s", "peak MB", "of the roof")
    note = "Each turn of each side. A slow peer may have done fewer units, so compare speeds."
    return Table("turns", "Every turn", note, columns, tuple(lines), folded=True)


def _run(row: SpeedRow, side: str, run: SpeedTurn, device: str) -> TableRow:
    tokens = f"{run['tokens_per_second']:,.0f}" if "tokens_per_second" in run else DASH
    peak = f"{run['peak_mb']:,}" if "peak_mb" in run else DASH
    share = f"{run['roof_percent']:.1f}%" if "roof_percent" in run else DASH
    speed = f"{run['per_second']:.3g} {row.unit}"
    took = (f"{run['seconds']:.2f}", f"{run['cpu_seconds']:.2f}")
    return TableRow((row.title, side, DEVICES[device], *took, speed, tokens, peak, share))


def readme_lines(results: Path) -> list[str]:
    """Lines of the README's table in Markdown: measured rows, then the names of the others."""
    from stagealign.report.pages.page import markdown

    speeds = read(results)
    whole = table(speeds)
    kept = [0, 1] + [place for i, device in enumerate(DEVICES) if speeds[device] for place in (2 + 2 * i, 3 + 2 * i)]
    done = [row for row in whole.rows if row.state == "done"]
    lines = []
    if done:
        lines += ["| " + " | ".join(whole.columns[i] for i in kept) + " |", "|" + "---|" * len(kept)]
        lines += ["| " + " | ".join(markdown(_short(row.cells[i])) for i in kept) + " |" for row in done]
        lines.append("")
    names = dict.fromkeys(row.title for row in ROWS if not any(row.key in speeds[device] for device in row.devices))
    waiting = f"Not measured yet: {'; '.join(names)}." if names else ""
    return [*lines, " ".join([*machines(speeds, markdown), waiting]).strip()]


def _short(cell: str) -> str:
    return cell.replace("\n", "; ")
