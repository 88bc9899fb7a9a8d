"""Runs a Ray cluster in its environment, and does what it reads from standard input, a line each.

    python -m tests.support.ray_driver PORT

A line is a JSON object: `deploy` has a Serve configuration, `validate` one that is only checked. Each gets a line of
JSON with the state of the cluster. It has two nodes for the tests that take minutes, and one for the others. What the
tests do not need, above all the dashboard, is not started.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import ray
from ray import serve
from ray._private import state
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

from deploy.ray_serve import app

_PAUSE_S = 0.2
"""Before each answer: tests poll, and must not keep the controller busy."""


def main() -> None:
    """Answer each line until the input ends."""
    port = int(sys.argv[1])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Ray's workers print there
    has_log = "RAY_TEST_LOG" in os.environ
    without = {"include_dashboard": False, "include_log_monitor": has_log, "no_monitor": True}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, **without})
    if os.environ.get("RAY_TESTS") == "all":
        cluster.add_node(num_cpus=4)
    ray.init(address=cluster.address, log_to_driver=has_log)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    print(json.dumps({"address": cluster.address}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


def _answer(command: dict[str, Any]) -> dict[str, Any]:
    if "deploy" in command:
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(command["deploy"]))
    if "validate" in command:
        for each in ServeDeploySchema.model_validate(command["validate"]).applications:
            app(each.args)
    time.sleep(_PAUSE_S)
    actors = state.actors(actor_state_name="ALIVE").values()
    applications = serve.status().applications
    return {
        "pids": [actor["Pid"] for actor in actors if actor["ActorClassName"].startswith("ServeReplica")],
        "replicas": {
            name: {state: count for state, count in each.replica_states.items() if count}
            for application in applications.values()
            for name, each in application.deployments.items()
        },
        "applications": {name: application.status for name, application in applications.items()},
        "messages": [application.message for application in applications.values()],
    }


if __name__ == "__main__":
    main()
