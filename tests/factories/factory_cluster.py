"""A Ray cluster of several nodes on one machine, for tests: a process that takes orders, one a line, and answers each.

`kill PID` ends the node that the worker PID belongs to as a power cut does, and adds another; `add FOLDER` adds a node
that imports from FOLDER; the end of its input ends everything.
"""

import itertools
import os
import sys

import psutil

NODE = {"num_cpus": 1, "memory": 3 << 30}
HEALTH = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


def main() -> None:
    from ray.cluster_utils import Cluster

    # The head builds nothing, so that each node that does can be killed.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH})
    for _ in range(2):
        add(cluster)
    print(f"address {cluster.address}", flush=True)
    for line in sys.stdin:
        word, given = line.split()
        if word == "kill":
            kill(cluster, int(given))
            add(cluster)
        else:
            add(cluster, PYTHONPATH=given)
        print("done", flush=True)
    cluster.shutdown()


numbers = itertools.count()


def add(cluster, **more):
    """Adds a node with a home of its own, for stores that have a bucket behind them."""
    home = os.path.join(os.environ["RAY_TMPDIR"], f"node-{next(numbers)}")
    cluster.add_node(**NODE, env_vars={"STAGEALIGN_HOME": home, **more})


def kill(cluster, pid):
    """Kills every process of the node that `pid` works for."""
    parents = {parent.pid for parent in psutil.Process(pid).parents()}
    [node] = [node for node in cluster.worker_nodes if raylet(node) in parents]
    processes = [psutil.Process(raylet(node)), *psutil.Process(raylet(node)).children(recursive=True)]
    for process in processes:
        process.kill()
    cluster.remove_node(node, allow_graceful=False)


def raylet(node):
    return node.all_processes["raylet"][0].process.pid


if __name__ == "__main__":
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    main()
