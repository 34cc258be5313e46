"""Checks before any work: machine, devices, memory, disk, the cost of a judge, and published weights."""

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from stagealign.base.errors import CannotRun
from stagealign.base.processes import gpu_count
from stagealign.execute.executors import Execution
from stagealign.execute.processes import worker_count
from stagealign.plan.flops import GIB
from stagealign.plan.machine import free_disk, lacking, paid_models
from stagealign.plan.needs import needs_of, side_by_side
from stagealign.plan.plan import CHANGED, Plan
from stagealign.store.artifact import Artifact
from stagealign.store.folder import Store
from stagealign.store.results import made_with


def preflight(plan: Plan, store: Store, how: Execution, results: Path) -> int | None:
    """Number of workers on this machine; for a cluster, the number asked for or None.

    Sets the judge's limit for each policy in the store's context. Raises StoreDrift for an artifact of another spec,
    CannotRun if the machine, its devices, memory, disk or packages do not suffice, or weights cannot be fetched.
    """
    check_drift(plan, store)
    check_machine(plan, store, how)
    check_devices(plan, how)
    check_judge(plan, store)
    workers = workers_of(plan, how) if how.here else how.workers
    store.context = replace(store.context, spend=spend_each(plan, how.spend))
    check_room(plan, store.home)
    check_checkpoints(plan, store, results)
    return workers


def check_drift(plan: Plan, store: Store) -> None:
    """Raises StoreDrift if the store holds an artifact of another spec, naming each changed field."""
    for item in plan.items:
        if item.state == CHANGED:
            store.record(item.artifact)


def check_machine(plan: Plan, store: Store, how: Execution) -> None:
    """Raises CannotRun, naming everything that is missing, if this machine cannot run a scale made for GPUs."""
    if not plan.scale.on_gpus:
        return
    missing = lacking(plan, store.home, how.devices, how.here)
    if missing:
        lines = "\n".join(f"  - {line}" for line in missing)
        raise CannotRun(
            f"--scale {plan.scale.key}: this machine lacks\n{lines}\nUse `--scale lab` for stand-ins on a CPU."
        )


def check_devices(plan: Plan, how: Execution) -> None:
    """Raises CannotRun or StagealignError if a loss is unknown, or devices or packages do not suffice."""
    from stagealign.train.launch import check
    from stagealign.train.losses import loss_of

    for run in plan.runs:
        loss_of(run.cell.method.form)
    training = plan.scale.training
    check(how.devices, training.batch, training.trained_layers, gpu_count() if how.here else how.devices.count)
    if any(run.cell.scale.training.peft for run in plan.runs) and find_spec("peft") is None:
        raise CannotRun("--peft lora: peft is not installed; `pip install 'stagealign[lora]'`")
    if any(run.abilities for run in plan.runs):
        from stagealign.evaluate import capability

        capability.require()


def check_judge(plan: Plan, store: Store) -> None:
    """Raises CannotRun if a judge labels rounds and no server is named, or if a server is named and no judge labels."""
    served = {run.cell.scale.preference.oracle for run in plan.runs if run.cell.scale.preference.oracle_kinds.served}
    url = store.context.judge_url
    if served and url is None and plan.missing:
        raise CannotRun(f"{', '.join(sorted(served))} labels the rounds: no server is named; add --judge-url URL")
    if url is not None and not served:
        raise CannotRun(f"--judge-url {url}: nothing here asks a judge; leave it out, or name a preference of judge:")


def workers_of(plan: Plan, how: Execution) -> int:
    """Number of artifacts built at the same time here: as asked, else as many as cores and memory allow.

    Raises CannotRun if memory does not suffice, or if several are asked for on a GPU.
    """
    asked = how.workers
    needs = {item.artifact.path: needs_of(item.artifact, item.scale, how.devices) for item in plan.to_build}
    if how.devices.launched:
        asked = asked or 1  # the processes of one round use the whole machine
    on_gpu = any(need.gpus for need in needs.values())
    if on_gpu and (asked or 1) > 1:
        raise CannotRun(
            f"--workers {asked}: only one artifact at a time uses the GPU here; add --executor ray, which gives each "
            "its own GPU, also on this machine"
        )
    return side_by_side(needs, 1 if on_gpu else worker_count(plan, asked), asked is not None) or 1


def spend_each(plan: Plan, spend: float | None) -> float | None:
    """USD that the judge may cost for each policy that it evaluates, so that all together stay within `spend`.

    What a judge costs that labels is known by estimate only, and taken off first. Raises CannotRun where work waits for
    a paid judge and no limit is named, or one that the estimate of the labels exceeds.
    """
    paid = [item for item in plan.to_build if item.cost.judge_dollars]
    if not paid:
        return None
    evaluated = [item for item in paid if item.artifact.role == "annotations"]
    dollars, labels = (sum(item.cost.judge_dollars for item in paid if item not in left) for left in ([], evaluated))
    if spend is None or spend < labels:
        what = f"{len(evaluated)} policies" if len(evaluated) == len(paid) else f"{len(paid)} sets of texts"
        limit = "" if spend is None else f", and --spend {spend:g} is less than its labels alone (${labels:.2f})"
        raise CannotRun(
            f"the judge {', '.join(paid_models(paid))} is asked about {what}, for about ${dollars:.2f}{limit}; "
            f"name the most that it may cost, such as --spend {1.2 * dollars:.2f}"
        )
    return (spend - labels) / len(evaluated) if evaluated else None


def check_room(plan: Plan, home: Path) -> None:
    """Raises CannotRun if the disk has no room for what the plan would write."""
    free = free_disk(home)
    if free < plan.disk:
        raise CannotRun(
            f"disk: {len(plan.missing)} artifacts need {plan.disk / GIB:.1f} GiB below {home}, {free / GIB:.1f} GiB "
            "are free; free some space, point STAGEALIGN_HOME elsewhere, or choose fewer cells with -k"
        )


def check_checkpoints(plan: Plan, store: Store, results: Path) -> None:
    """Raises StagealignError if published weights cannot be fetched or used.

    For unpinned weights, raises CannotRun if `results` holds numbers made with another commit of them.
    """
    fetched = [artifact for artifact in plan.artifacts.values() if artifact.kind.fetches]
    for artifact in fetched:
        if artifact.path in plan.ready and artifact.params["revision"] is None:
            commit = store.facts(artifact).get("revision")
            if commit:
                _check_unmoved(artifact, results / plan.scale.key, str(commit))
    wanted = [artifact for artifact in fetched if artifact.path not in plan.ready]
    if not wanted:
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # as in the workers that will fetch them
    from stagealign.policy.start import check_checkpoint

    as_is = {run.weights.path for run in plan.runs if run.cell.checkpoint.sft is None}
    for artifact in wanted:
        if artifact.kind.fetches == "checkpoint":
            name = str(artifact.params["checkpoint"])
            check_checkpoint(name, artifact.params["revision"], artifact.path in as_is)
        if artifact.params["revision"] is None:
            _check_unmoved(artifact, results / plan.scale.key, None)


def _check_unmoved(artifact: Artifact, results: Path, here: str | None) -> None:
    """Raises CannotRun if results were made with another commit than `here`; None stands for the newest commit."""
    from stagealign.policy.start import commit_of

    name = str(artifact.params[artifact.kind.fetches])
    known = made_with(results, artifact)
    now = here or (commit_of(name) if known else "")
    for commit, cells in known.items():
        if commit != now:
            raise CannotRun(
                f"{name}: {'the store has' if here else 'its newest revision is'} {now} now, and {results} "
                f"holds results made with {commit} ({_named(cells)}), which must not share a "
                "table; name another folder with --results, or point STAGEALIGN_HOME to the store that has the "
                "old weights"
            )


def _named(cells: Sequence[str]) -> str:
    return f"{cells[0]}, {len(cells)} in all"
