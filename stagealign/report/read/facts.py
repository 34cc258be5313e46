"""Origin of the numbers as recorded in results: commits, hardware and seconds."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stagealign.store.result_types import Result, is_done


def facts(results: Iterable[Result]) -> dict[str, Mapping[str, Any]]:
    """Facts by artifact, each artifact once."""
    by_path: dict[str, Mapping[str, Any]] = {}
    for result in results:
        by_path |= result.get("artifacts", {})
    return by_path


def distinct(results: Iterable[Result], field: str) -> list[str]:
    """Distinct values of one field of the artifacts' facts and of the results, sorted."""
    results = list(results)
    values = [artifact.get(field) for artifact in facts(results).values()] + [result.get(field) for result in results]
    return sorted({value for value in values if isinstance(value, str)})


def dirty(results: Iterable[Result]) -> bool:
    """Whether any result or artifact was made with uncommitted changes."""
    results = list(results)
    return any(entry.get("dirty") for entry in [*facts(results).values(), *results])


def seconds(result: Result) -> float | None:
    """Seconds to build all artifacts of one run; a shared artifact counts in every run that uses it."""
    known = [
        float(artifact["seconds"])
        for artifact in facts([result]).values()
        if isinstance(artifact.get("seconds"), int | float)
    ]
    return sum(known) if known else None


def peak_memory(result: Result) -> float | None:
    """Largest peak of resident memory among the run's artifacts, in MiB."""
    known = [artifact.get("peak_memory_mib") for artifact in facts([result]).values()]
    numbers = [float(number) for number in known if isinstance(number, int | float)]
    return max(numbers) if numbers else None


def reference_forwards(result: Result) -> tuple[int, int] | None:
    """(computed, reused) forwards of the reference model in one run; None if they were not recorded."""
    rungs = (rung for entry in result["rounds"] for rung in entry["rungs"] if is_done(rung))
    counts = [forwards for rung in rungs if (forwards := rung.get("training", {}).get("reference"))]
    if not counts:
        return None
    return sum(count.get("computed", 0) for count in counts), sum(count.get("reused", 0) for count in counts)


def scorers(results: Iterable[Result]) -> list[str]:
    """Held-out quality of each scorer, one distinct line each."""
    lines = (
        f"{name}: {', '.join(_flat('', quality))}"
        for result in results
        for name, quality in sorted((result.get("scorers") or {}).items())
    )
    return list(dict.fromkeys(lines))


def _flat(name: str, node: Any) -> Iterator[str]:
    if isinstance(node, Mapping) and {"value", "unit"} <= node.keys():
        yield f"{name} {node['value']:.3g} {node['unit']} (n = {node.get('n')})"
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(f"{name} {key}".strip(), value)
    elif isinstance(node, float):
        yield f"{name} {node:.3g}"
    elif node is not None and not isinstance(node, list):
        yield f"{name.replace('_', ' ')} {node}"
