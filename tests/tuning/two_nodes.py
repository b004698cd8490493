"""A sweep over a cluster of two nodes of one CPU each: ``python -m tests.tuning.two_nodes SWEEP.yaml``."""

import json
import os
import sys
from pathlib import Path

import yaml
from ray.cluster_utils import Cluster

from essa_dist.tuning.cluster import QUIET
from tests.tuning.driving import REPOSITORY, sweep

if __name__ == "__main__":
    os.environ.update(QUIET)
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        told = yaml.safe_load(Path(sys.argv[1]).read_text())
        result = sweep(told | {"address": cluster.address})
        sys.stdout.write(json.dumps({"best": result["best"]}) + "\n")
    finally:
        cluster.shutdown()
