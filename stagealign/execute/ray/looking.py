"""Checks that every node would build as this machine does: same code, same packages, same store."""

import hashlib
import os
import platform
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

from stagealign.base import server
from stagealign.base.errors import CannotRun, StagealignError
from stagealign.base.secrets import without_secrets
from stagealign.execute.ray.nodes import Node
from stagealign.plan import machine
from stagealign.store.bucket import BUCKET, Bucketed
from stagealign.store.facts import package_versions
from stagealign.store.folder import Store
from stagealign.store.room import room_error

PATIENCE = 180.0
"""Seconds that nodes have to answer; the first task on a node starts a process and imports libraries."""
KEYS = ("HF_TOKEN", *server.KEYS, *server.POLICY_KEYS)
"""Environment variables with secrets that builders read; a node reports only whether they are set."""


@lru_cache
def code() -> str:
    """Hash of all files of this package, for comparison between nodes."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of code, Python and packages that may change a number, without the build of torch."""
    packages = {name: version.partition("+")[0] for name, version in package_versions().items()}
    return {**packages, "python": ".".join(platform.python_version_tuple()[:2]), "stagealign's files": code()}


class NodeReport(TypedDict):
    """Report of a node about itself."""

    versions: dict[str, str]
    store: bool
    """Whether the node sees the driver's store and may write there."""
    why: str
    """Error of the store's library, if it raised one; else empty."""
    device_memory: int | None
    """Bytes of the node's largest GPU; None without a GPU."""
    keys: list[str]
    """Those of `KEYS` that are set."""


def about_here(place: str, bucket: bool, note: str, written: str) -> NodeReport:
    """Report of this node; `note` names the file that the driver wrote into the store, with text `written`."""
    why = ""
    try:
        seen = Bucketed(place).note(note) == written if bucket else _holds(Path(place), note, written)
    except StagealignError as error:
        seen, why = False, without_secrets(str(error))
    return {
        "versions": versions(),
        "store": seen,
        "why": why,
        "device_memory": machine.gpu_memory(),
        "keys": [name for name in KEYS if os.environ.get(name)],
    }


def _holds(folder: Path, note: str, written: str) -> bool:
    """Whether the folder holds the driver's note and can be written."""
    try:
        return (folder / note).read_text(encoding="utf-8") == written and os.access(folder, os.W_OK)
    except OSError:
        return False


@contextmanager
def _note(store: Store, name: str, text: str) -> Iterator[None]:
    """Writes a note into the store, and removes it after the block."""
    if isinstance(store, Bucketed):
        store.leave(name, text)
        try:
            yield
        finally:
            store.leave(name, "")
        return
    note = store.home / name
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(text, encoding="utf-8")
    except OSError as error:
        raise room_error(note, error) or error from error
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def check_nodes(ray: Any, nodes: Sequence[Node], store: Store, keys: bool) -> list[Node]:
    """Nodes with the memory of their GPUs.

    Raises CannotRun, naming every node with other versions or without the store; with `keys`, also every node without
    a key that is set here.
    """
    written = secrets.token_hex(8)
    name = f"cluster-{written}.note"
    with _note(store, name, written):
        reports = _ask(ray, nodes, store, name, written)
        ours = about_here(store.place, isinstance(store, Bucketed), name, written)
    wrong = [line for node in nodes for line in _faults(node.name, reports[node.id], ours, store.place, keys)]
    if wrong:
        lines = "\n".join(f"  - {line}" for line in dict.fromkeys(wrong))
        raise CannotRun(f"--executor ray: not every node can build as this machine does\n{lines}")
    return [replace(node, device_memory=reports[node.id]["device_memory"]) for node in nodes]


def _ask(ray: Any, nodes: Sequence[Node], store: Store, note: str, written: str) -> dict[str, dict[str, Any]]:
    """Node id -> its report, or `absent` with the error if its Python cannot import stagealign."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look(place: str, bucket: bool, name: str, text: str) -> Any:  # nested, so that Ray sends the code itself
        try:
            return about_here(place, bucket, name, text)
        except ImportError as error:
            import sys

            return {"absent": f"{sys.executable}: {error}"}

    task = ray.remote(look)
    asked = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node.id, soft=False)
        options = task.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy, name="look")
        asked[node.id] = options.remote(store.place, isinstance(store, Bucketed), note, written)
    late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE)[1]
    if late:
        names = ", ".join(node.name for node in nodes if asked[node.id] in late)
        raise CannotRun(f"--executor ray: no answer from {names} within {PATIENCE:.0f} s; look at it with `ray status`")
    try:
        return {name: ray.get(reference) for name, reference in asked.items()}
    except ray.exceptions.RayError as error:
        raise StagealignError(
            f"--executor ray: a node was lost before work began ({_first_line(error)}); run the same command again"
        ) from error


def _first_line(error: Exception) -> str:
    return without_secrets(str(error).strip().partition("\n")[0])


def _faults(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], place: str, keys: bool) -> list[str]:
    """Faults of one node, one line each."""
    if "absent" in theirs:
        return [f"{name}: {theirs['absent']}; install the same stagealign there, best in a folder that all nodes share"]
    faults = [
        f"{name}: {what} is {theirs['versions'].get(what, 'not there')}, here it is {version}; install the same there"
        for what, version in ours["versions"].items()
        if theirs["versions"].get(what) != version
    ]
    if theirs["why"]:
        faults.append(f"{name}: {theirs['why']}")
    elif not theirs["store"]:
        faults.append(
            f"{name}: {without_secrets(place)} is another folder there than here; point STAGEALIGN_HOME to a folder "
            f"that all nodes share, or {BUCKET} to a bucket that all may use"
        )
    missing = [key for key in ours["keys"] if key not in theirs["keys"]] if keys else []
    return faults + [f"{name}: {key} is set here and not there; set it where `ray start` is called" for key in missing]
