"""Connection to a Ray cluster, or to a new local Ray, which only this machine can reach."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from stagealign.base.errors import CannotRun
from stagealign.base.secrets import without_secrets
from stagealign.execute.ray.nodes import Node

REACH = 10.0
"""Seconds after which a connection to an address is given up."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a task without GPUs hides them itself: see `crew`
    "RAY_task_oom_retries": "3",  # by default a task that never fits in memory is retried for ever
}
"""Environment variables of Ray, which must be set before it is imported."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Variable that, set to `0`, makes all servers of a new local Ray listen on 127.0.0.1 only, on every system."""


@contextmanager
def joined(address: str | None) -> Iterator[tuple[Any, list[Node]]]:
    """Ray, connected to `address`, else to `$RAY_ADDRESS`, else to a new local Ray; and its live nodes.

    Raises CannotRun if Ray is not installed or the address cannot be reached.
    """
    if find_spec("ray") is None:
        raise CannotRun("--executor ray: ray is not installed; `pip install 'stagealign[cluster]'`")
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.update(QUIET)
    if address == "local":
        os.environ[LOOPBACK] = "0"
    else:
        _reach(address)
    before = signal.getsignal(signal.SIGTERM)
    import ray

    try:
        own: dict[str, Any] = {"num_cpus": os.cpu_count(), "include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise _unreachable(address, str(error)) from error
        signal.signal(signal.SIGTERM, before)  # Ray's own handler would end this process without a message
        yield ray, _nodes(ray)
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _reach(address: str) -> None:
    """Raises CannotRun if nothing answers at `host:port`; Ray itself would try for a minute, then end this process."""
    if address == "auto":
        return
    if "://" in address:
        raise CannotRun(
            f"--address {without_secrets(address)}: not a node of the cluster; run this command on a node, which sees "
            "the store, with `--address auto` (or send it there: `ray job submit -- stagealign run --executor ray ...`)"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise CannotRun(f"--address {address}: not an address; give host:port of the head node, auto, or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, why: str) -> CannotRun:
    what = "a new local Ray could not be started" if address == "local" else "no Ray cluster could be joined there"
    advice = (
        "free some memory and disk, or leave --executor ray out"
        if address == "local"
        else "look at `ray status` on the head node, whose `ray start --head` prints the address"
    )
    return CannotRun(f"--address {address}: {what} ({without_secrets(why.strip())}); {advice}")


def _nodes(ray: Any) -> list[Node]:
    """Live nodes of the cluster."""
    return [
        Node(
            entry["NodeID"],
            f"{entry['NodeManagerHostname']} ({entry['NodeManagerAddress']})",
            int(entry["Resources"].get("CPU", 0)),
            int(entry["Resources"].get("GPU", 0)),
            int(entry["Resources"].get("memory", 0)),
        )
        for entry in ray.nodes()
        if entry["Alive"]
    ]
