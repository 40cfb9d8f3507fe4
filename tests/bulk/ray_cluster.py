"""A Ray cluster on this machine, in a process of its own: `python -m tests.bulk.ray_cluster`.

Says in a line of JSON its address and the raylets' process ids. For each line that it reads it starts another raylet
and says the id. It ends, with all of Ray's processes, where its input does: also when the tests are killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any

ENVIRON = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else it takes the machine's own address, whatever it is told
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Of the cluster and of who uses it."""
_NODE: dict[str, Any] = {  # Any: Ray's options
    "num_cpus": 1,
    "node_ip_address": "127.0.0.1",
    "object_store_memory": 100_000_000,
}


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    raylets = [_raylet(cluster.head_node), _raylet(cluster.add_node(**_NODE))]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
    for _ in sys.stdin:
        print(_raylet(cluster.add_node(**_NODE)), flush=True)
    nodes = cluster.list_all_nodes()
    with suppress(Exception):  # of nodes that a test has killed
        cluster.shutdown()
    for node in nodes:
        for process in (each.process for kind in node.all_processes.values() for each in kind):
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)  # gcs_server ignores SIGTERM at times


def _raylet(node: Any) -> int:  # Any: Ray's
    (process,) = node.all_processes["raylet"]
    return int(process.process.pid)


if __name__ == "__main__":
    main()
