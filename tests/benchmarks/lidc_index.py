"""Measure the whole index of LIDC-IDRI against pylidc's clusters alone, side by side.

pylidc 0.2.3 needs an old numpy and setuptools, so it runs in an interpreter of its own:

``python3.11 -m venv ENV && ENV/bin/pip install pylidc==0.2.3 'numpy<1.24' 'setuptools<80'
'sqlalchemy<2.1' scipy matplotlib scikit-image``

The scans are divided into parts. For each part pylidc clusters, then the index of the same scans
is made, so that a load that comes and goes slows down both. Only the computing is timed, not the
start of the interpreters.

Run: ``python tests/benchmarks/lidc_index.py --pylidc-python ENV/bin/python [--scans N]``. One
JSON object is written.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

from data_prep.lidc.index import build_index, lidc_index

PYLIDC = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy, pylidc
uids = json.load(sys.stdin)
wall, cpu = time.perf_counter(), time.process_time()
clusters = {}
for uid in uids:
    scan = pylidc.query(pylidc.Scan).filter(pylidc.Scan.series_instance_uid == uid).one()
    groups = scan.cluster_annotations(verbose=False)
    clusters[uid] = [sorted(annotation.id for annotation in group) for group in groups]
json.dump({
    "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
    "clusters": clusters, "numpy": numpy.__version__,
}, sys.stdout)
"""

INDEX = """
import json, sys, time
from data_prep.lidc.index import build_index
uids = json.load(sys.stdin)
wall, cpu = time.perf_counter(), time.process_time()
index = build_index(uids)
seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
clusters = {
    scan.series_uid: [sorted(nodule.annotation_ids) for nodule in scan.nodules]
    for scan in index.scans
}
json.dump({**seconds, "clusters": clusters}, sys.stdout)
"""


def _run(python: str, code: str, series_uids: list[str]) -> dict:
    """Run code in an interpreter of its own on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", code],
        input=json.dumps(series_uids),
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout)


def _same(ours: dict, theirs: dict) -> int:
    """Count the scans that both divide into the same nodules."""
    return sum(sorted(map(tuple, ours[uid])) == sorted(map(tuple, theirs[uid])) for uid in theirs)


def _cached_seconds(repeats: int) -> tuple[float, float]:
    """Return the time for the first call (which builds and keeps) and the median of later ones."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        lidc_index()
        times.append(time.perf_counter() - start)
    first, *later = times
    return first, sorted(later)[len(later) // 2]


def main() -> None:
    """Measure, and write the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pylidc-python", required=True, help="interpreter that has pylidc")
    parser.add_argument("--scans", type=int, help="only the first so many scans")
    parser.add_argument("--parts", type=int, default=8, help="turns of both")
    arguments = parser.parse_args()

    uids = [scan.series_uid for scan in build_index().scans][: arguments.scans]
    size = -(-len(uids) // arguments.parts)
    pylidc, ours, same = [], [], 0
    for start in range(0, len(uids), size):
        part = uids[start : start + size]
        theirs = _run(arguments.pylidc_python, PYLIDC, part)
        index = _run(sys.executable, INDEX, part)
        same += _same(index["clusters"], theirs["clusters"])
        pylidc.append(theirs)
        ours.append(index)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        first, cached = _cached_seconds(repeats=5)
    totals = {
        name: {key: sum(turn[key] for turn in turns) for key in ("wall_s", "cpu_s")}
        for name, turns in (("pylidc", pylidc), ("index", ours))
    }
    result = {
        "scans": len(uids),
        "scans_with_the_same_nodules": same,
        "pylidc_clusters_s": round(totals["pylidc"]["wall_s"], 2),
        "index_s": round(totals["index"]["wall_s"], 2),
        "pylidc_over_index": round(totals["pylidc"]["wall_s"] / totals["index"]["wall_s"], 1),
        "pylidc_over_index_cpu": round(totals["pylidc"]["cpu_s"] / totals["index"]["cpu_s"], 1),
        "all_scans_first_call_s": round(first, 2),
        "all_scans_cached_s": round(cached, 3),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "pylidc_numpy": pylidc[0]["numpy"],
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
