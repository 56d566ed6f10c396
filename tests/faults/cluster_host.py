"""A Ray cluster of several nodes on this machine, in a process of its own: `python cluster_host.py NUM_NODES`.

The head offers no CPU; each other node offers one, so that one worker fits. Prints the address, then does what it is
told line by line and answers with a line: `add`, `kill` (SIGKILL to all of the oldest node's processes), `term`
(SIGTERM to its raylet, as a spot notice ends), `nodes`. Ends, with everything it started, when its input does.
"""

import signal
import sys

from ray.cluster_utils import Cluster


def add(cluster):
    return cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80_000_000)


def end(cluster, node, number):
    if number == signal.SIGKILL:
        cluster.remove_node(node, allow_graceful=False)
    else:
        for process in node.all_processes["raylet"]:
            process.process.terminate()
            process.process.wait(30)
        cluster.remove_node(node, allow_graceful=False)


def main():
    cluster = Cluster(
        initialize_head=True,
        connect=False,
        head_node_args={"num_cpus": 0, "num_gpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False},
    )
    try:
        nodes = [add(cluster) for _ in range(int(sys.argv[1]))]
        print(cluster.address, flush=True)  # noqa: T201 - its answer
        for line in sys.stdin:
            command = line.strip()
            if command == "add":
                nodes.append(add(cluster))
            elif command in ("kill", "term"):
                end(cluster, nodes.pop(0), signal.SIGKILL if command == "kill" else signal.SIGTERM)
            print(f"{command} {len(nodes)}", flush=True)  # noqa: T201
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
