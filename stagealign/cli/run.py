"""What the commands do: plan, say so, execute with progress, write results, report."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from stagealign.base.errors import BadData, CannotRun, StagealignError
from stagealign.base.processes import gpu_count
from stagealign.cli import tables as show
from stagealign.cli import variants
from stagealign.data import assets, download
from stagealign.evaluate import capability
from stagealign.evaluate.alpaca_eval.lc_win_rate import writable
from stagealign.execute.preflight import check_room
from stagealign.execute.processes import Crew, Outcome, execute, worker_count
from stagealign.grid import registry, select
from stagealign.grid.cell import Cell, Scale
from stagealign.pipeline.result import result, unfinished
from stagealign.pipeline.run import Run
from stagealign.plan.flops import ALPACA_EVAL
from stagealign.plan.machine import check_machine
from stagealign.plan.needs import needs_of, side_by_side
from stagealign.plan.plan import Plan, make_plan
from stagealign.plan.price import Estimate, estimate
from stagealign.store.artifact import Artifact, Devices
from stagealign.store.bucket import opened
from stagealign.store.files import write_text
from stagealign.store.folder import Store
from stagealign.store.results import done_rungs, made_with, result_path, says_all, stands, write_result
from stagealign.train.launch import check as check_devices

EXECUTORS = ("local", "ray")
"""Who builds: processes of this machine, or a Ray cluster's."""
DEMO = "zephyr and dpo and (1off or 1on or 2off_off or 2off_on)"


@dataclass(frozen=True)
class Execution:
    """How a run is carried out: none of it changes what is built."""

    workers: int | None = None
    """Artifacts built side by side; None takes what fits."""
    devices: Devices = field(default_factory=Devices)
    executor: str = "local"
    """One of EXECUTORS."""
    address: str | None = None
    """Of a Ray cluster."""
    spend: float | None = None
    """What a paid judge may cost in all, in USD."""

    @property
    def here(self) -> bool:
        """Whether this machine builds."""
        return self.executor == "local"

    def check(self) -> None:
        """Raises StagealignError for an executor that there is none of, or an address that nobody would ask."""
        if self.executor not in EXECUTORS:
            raise StagealignError(f"--executor {self.executor!r}: unknown; choose one of {', '.join(EXECUTORS)}")
        if self.here and self.address is not None:
            raise StagealignError(f"--address {self.address}: is that of a Ray cluster; add --executor ray")


def run(
    scale: Scale,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    results: Path,
    how: Execution = Execution(),
    again: bool = False,
    with_capability: bool = False,
    dry_run: bool = False,
) -> Outcome:
    """Runs cells with seeds and writes one result each; failed ones are written as failed.

    A run whose complete result stands in `results` is left out, also on a machine whose store is empty, unless `again`.
    Raises CannotRun before work where the scale, or `with_capability`, needs what is not here, or not in the cluster.
    """
    how.check()

    def stand(one: Run) -> bool:
        return not again and stands(result_path(results, scale.key, one.cell.id, one.seed), one.rungs, one.measured)

    _check_asked(scale, cells, how, with_capability)
    store = opened(how.devices)
    plan = make_plan(cells, seeds, store, capability=with_capability, stands=stand)
    workers = _workers(scale, plan, how.devices, how.workers) if how.here else how.workers
    if how.here or dry_run or not plan.missing:
        show.plan(scale, plan, workers)
    if dry_run:
        return Outcome()
    costs = [estimate(artifact, scale.key) for artifact in plan.missing]
    store.spend = _share(costs, how.spend)
    check_room(plan, sum(one.disk for one in costs), store.home)
    check_checkpoints(plan, store, results)
    if how.here or not plan.missing:
        return _carry_out(plan, store, results, workers)
    from stagealign.execute.ray import RayCrew, joined

    with joined(how.address) as (ray, nodes):
        crew = RayCrew(ray, nodes, plan, store, scale, workers)
        show.cluster(nodes)
        show.plan(scale, plan, crew.slots)
        return _carry_out(plan, store, results, crew.slots, crew)


def _check_asked(scale: Scale, cells: Sequence[Cell], how: Execution, with_capability: bool) -> None:
    """Raises CannotRun, or StagealignError, where the machine, its GPUs or its packages do not do for what is asked."""
    check_machine(scale, cells, how.here, how.devices)
    if with_capability:
        capability.require()
    gpus = gpu_count() if how.here else how.devices.count
    check_devices(how.devices, scale.training.batch, scale.training.trained_layers, gpus)
    if any(cell.scale.training.peft for cell in cells) and find_spec("peft") is None:
        raise CannotRun("--peft lora: peft is not installed; `pip install 'stagealign[lora]'`")


def _workers(scale: Scale, plan: Plan, devices: Devices, asked: int | None) -> int:
    """Artifacts that are built side by side here: as asked, else as many as cores and memory allow.

    Raises CannotRun where the memory does not do for that.
    """
    needs = {artifact.path: needs_of(artifact, scale, devices) for artifact in plan.missing}
    if devices.launched:
        asked = asked or 1  # a round's processes have the machine to themselves
    on_gpu = any(one.gpus for one in needs.values())
    if on_gpu and (asked or 1) > 1:
        raise CannotRun(
            f"--workers {asked}: one artifact at a time has the GPU here; --executor ray gives each its own, on "
            "this machine too"
        )
    return side_by_side(needs, 1 if on_gpu else worker_count(plan, asked), asked is not None) or 1


def _share(costs: Sequence[Estimate], spend: float | None) -> float | None:
    """USD that the judge may cost for each policy, so that all together stay within `spend`.

    Raises CannotRun where policies wait for a paid judge and no limit is named.
    """
    dollars = [one.judge_dollars for one in costs if one.judge_dollars]
    if dollars and spend is None:
        raise CannotRun(
            f"the judge {ALPACA_EVAL.model} is asked about {len(dollars)} policies, for about ${sum(dollars):.0f}; "
            f"name the most that it may cost, such as --spend {1.2 * sum(dollars):.0f}"
        )
    return spend / len(dollars) if dollars and spend is not None else None


FETCHED = (
    "stagealign.policy.start:build_checkpoint",
    "stagealign.oracle.pairrm:fetch",
    "stagealign.evaluate.rewards:fetch",
)
"""Builders that take weights from the hub."""


def check_checkpoints(plan: Plan, store: Store, results: Path) -> None:
    """Raises, before anything is built, where published weights that would be fetched cannot be had or used.

    Also where they are not pinned and `results` holds numbers that were made with another commit of them.
    """
    wanted = [one for one in plan.missing if one.builder.name in FETCHED]
    for one in plan.artifacts.values():
        if one.builder.name in FETCHED and one.path in plan.ready and one.params["revision"] is None:
            commit = (store.record(one) or {"facts": {}})["facts"].get("revision")
            if commit:
                _check_unmoved(one, results, commit)
    if wanted:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # as for the workers that will fetch them
        from stagealign.policy import start as sft

        links = [one for one in plan.artifacts.values() if one.builder.name == "stagealign.policy.start:build_link"]
        as_is = {one.inputs["weights"].path for one in links}
        for artifact in wanted:
            name, revision = artifact.params.get("checkpoint"), artifact.params["revision"]
            if name:
                sft.check_checkpoint(str(name), revision, artifact.path in as_is)
            if revision is None:
                _check_unmoved(artifact, results, None)


def _check_unmoved(artifact: Artifact, results: Path, here: str | None) -> None:
    """Raises CannotRun where results were made with another commit than the one `here`, or None: than the newest."""
    from stagealign.policy import start as sft

    name = str(artifact.params.get("checkpoint") or artifact.params["weights"])
    scale = artifact.path.partition("/")[0]
    known = made_with(results, scale, artifact.path, artifact.fingerprint)
    now = here or (sft.commit_of(name) if known else "")
    for commit, cells in known.items():
        if commit != now:
            raise CannotRun(
                f"{name}: {'the store has' if here else 'its newest revision is'} {now} now, and {results / scale} "
                f"holds results that were made with {commit} ({cells[0]}, {len(cells)} in all), which must not stand "
                "in one table; name another folder with --results, or point STAGEALIGN_HOME to the store that has the "
                "old weights"
            )


def plan(
    scale: Scale,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    results: Path,
    gpu: str | None,
    again: bool = False,
    json_file: str | None = None,
) -> None:
    """Shows, or writes, what these runs would build, why, and at what cost."""
    from stagealign.plan import outlook

    writable(json_file)

    def stand(one: Run) -> bool:
        return stands(result_path(results, scale.key, one.cell.id, one.seed), one.rungs)

    found = outlook.make_outlook(scale, cells, seeds, opened(), outlook.processor(gpu, scale), stand, again)
    if json_file:
        outlook.write(found, json_file)
    if json_file != "-":
        show.outlook(found)


def scale_docs(docs: Path) -> None:
    """Writes the cost tables of the paper's grid into `docs` anew."""
    from stagealign.plan.scale_docs import with_scale

    docs.write_text(with_scale(docs.read_text(encoding="utf-8")), encoding="utf-8")
    show.wrote([docs])


def demo(results: Path, reports: Path, workers: int | None) -> Outcome:
    """The lab's demo row at one learning rate a source, its report, and its table in the terminal."""
    from stagealign.report.build import summary_rows

    scale = registry.scale("lab")
    cells = select.select("lab", DEMO)
    store = opened()
    plan = make_plan(cells, (0,), store, demo=True)
    workers = _workers(scale, plan, Devices(), workers)
    show.plan(scale, plan, workers)
    if plan.missing:
        fetch()
    outcome = _carry_out(plan, store, results, workers)
    if not outcome.failed:
        report(results, reports, "lab", check=False)
        show.summary(scale, cells, summary_rows(results, cells))
        show.where(reports / "index.html")
    return outcome


def _carry_out(plan: Plan, store: Store, results: Path, workers: int | None, crew: Crew | None = None) -> Outcome:
    """Builds what is missing and writes each result as soon as it is complete, so that an interrupt costs none."""
    waiting = dict(enumerate(plan.runs))
    claimed: set[str] = set()
    count = worker_count(plan, workers) if crew is None else workers or 1
    with show.progress(plan, count, lines=crew is not None) as progress:

        def finish(outcome: Outcome) -> None:
            ready = plan.ready | outcome.built | outcome.found
            for number, one in list(waiting.items()):
                goals = {goal.path for goal in one.goals}
                if goals <= ready:
                    fresh = outcome.built - claimed
                    made = result(one, store, fresh)
                    claimed.update(outcome.built - claimed - fresh)
                    path = result_path(results, one.cell.scale.key, one.cell.id, one.seed)
                    same = outcome.built.isdisjoint(one.artifacts) and stands(path, done_rungs(made), one.measured)
                    if not (same and says_all(path, made)):
                        progress.wrote(write_result(results, made))
                elif goals & outcome.failed.keys():
                    _write_failure(one, outcome, results)
                else:
                    continue
                del waiting[number]

        def heard(event: str, artifact: Artifact, outcome: Outcome) -> None:
            told = outcome.waiting if event == "waiting" else outcome.places
            progress.heard(event, artifact, told.get(artifact.path, ""))
            if event not in ("started", "again", "waiting"):
                finish(outcome)

        finish(Outcome())
        outcome = execute(plan, store, workers, heard, crew)
        finish(outcome)
    show.outcome(plan, outcome)
    facts = {path: (store.record(plan.artifacts[path]) or {}).get("facts", {}) for path in sorted(outcome.built)}
    show.lowered({path: one["lowered"] for path, one in facts.items() if "lowered" in one})
    return outcome


def _write_failure(one: Run, outcome: Outcome, results: Path) -> None:
    """Writes a failed run's result, unless an earlier run of the same cell left a finished one."""
    reasons = [outcome.failed[goal.path] for goal in one.goals if goal.path in outcome.failed]
    if not result_path(results, one.cell.scale.key, one.cell.id, one.seed).exists():
        write_result(results, unfinished(one, "failed", reasons[0]))


def report(results: Path, reports: Path, scale: str, check: bool, readme: Path | None = None) -> int:
    """Exit code: 0 where reports are written or current, 1 where `check` found some that are not."""
    from stagealign.report import build as reporting

    if not any((results / scale).glob("*-seed*.json")):
        raise BadData(f"{results / scale}: no result files; run some first: `stagealign run --scale {scale}`")
    front = _front(readme, results, reports) if readme else None
    if check:
        stale = reporting.check(results, reports, scale)
        if readme and front != readme.read_text(encoding="utf-8"):
            stale.append(str(readme))
        show.checked(stale)
        return 1 if stale else 0
    show.wrote(reporting.write(results, reports, scale))
    if readme and front is not None:
        write_text(readme, front)
        show.wrote([readme])
    return 0


def _front(readme: Path, results: Path, reports: Path) -> str:
    """The README's text with the demo's table, the meter's cost, speeds and attacks as the results give them now."""
    from stagealign.report.pages.front import with_demo, with_faults, with_meter, with_speed

    text = with_demo(readme.read_text(encoding="utf-8"), results, select.select("lab", DEMO), reports.name)
    return with_faults(with_speed(with_meter(text, results), results), results)


def compare(a: str, b: str, scale: str, results: Path) -> int:
    """Exit code: 0 where nothing moved by more than noise and nothing is missing, else 1.

    Raises UnknownName where `a` and `b` are neither two folders nor two cells of the scale.
    """
    from stagealign.report.read import compare as comparing

    places = [name for name in (a, b) if Path(name).is_dir() or "/" in name]
    if places:
        for name in (a, b):
            if not Path(name).is_dir():
                raise BadData(f"{name}: no such folder; compare two results folders, or two cells")
        found = comparing.compare_folders(Path(a), Path(b), scale)
    else:
        cells = [registry.cell(name, scale).id for name in (a, b)]
        found = comparing.compare_cells(results, scale, cells[0], cells[1])
    show.comparison(found, every=not places)
    return 1 if found.changed else 0


def export(cell_id: str, scale: str, seed: int, to: Path, results: Path, push: str | None) -> None:
    """Writes a cell's policy into the folder `to`, and to the hub where `push` names a repository."""
    from stagealign.cli import export as exporting

    cell = variants.named(cell_id, scale, seed, results)
    show.wrote([exporting.export(cell, seed, to, results, push=push)])


def fetch() -> None:
    """Downloads every asset of the lab that is not in the cache, or is not as it was unpacked."""
    home = Store().home
    for asset in assets.ASSETS.values():
        there = download.ready(asset, home)
        found = download.damaged(asset, home) if there else None
        if found:
            show.damaged(found)
        if found or not there:
            with show.download(asset) as progress:
                download.fetch(asset, home, progress, mend=True)
    show.fetched(home)
