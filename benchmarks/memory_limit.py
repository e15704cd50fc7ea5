"""Whether a worker stays within its container's memory limit: with more keys than have room, and during a model swap.

    sudo python benchmarks/memory_limit.py [--limit-mb 512] [--keys 400000] [--state 264]

The worker runs in a cgroup of its own with the limit, default settings, on a real broker. Each key comes once. Then a
model that would take 64 GB is published, and refused, and a newer model of the same layout, which takes over. The
kernel kills a worker that goes beyond the limit, and this ends with it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import psutil
from memory import make_model
from worker_process import WorkerProcess, make_topics, send

from tidecast.service.broker.connect import connect
from tidecast.service.broker.embedded.server import EmbeddedBroker

PARTITIONS, START_MS = 4, 1_700_000_000_000
IN_GROUP = "import os, sys; open(sys.argv.pop(1), 'w').write(str(os.getpid())); from tidecast.service.cli import main; "


def new_group(limit: int) -> Path:
    """A cgroup, v2 or v1, with this memory limit in bytes; returns the file that takes process ids."""
    for root, name in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        if Path(root).is_dir():
            folder = Path(root, f"tidecast-{os.getpid()}")
            folder.mkdir()
            (folder / name).write_text(str(limit))
            return folder / "cgroup.procs"
    raise SystemExit("no cgroups here: this runs on Linux only")


def make_models(folder: Path, state: int) -> tuple[Path, Path, Path]:
    """Two models with the same layout of the state, and one that takes 64 GB. In its own process: it needs torch."""
    import onnx

    from tests.support.hostile import hungry
    from tests.support.models import save
    from tidecast.service.model.session import Model

    first = make_model(folder / "first", state)
    graph = onnx.load(first / "model.onnx")
    del graph.metadata_props[:]
    graph.producer_name = "second"  # the content hash depends on it
    return first, save(folder / "second", graph, Model.load(first).spec), hungry(folder / "hungry")


def publish(model: Path, place: Path) -> None:
    """Put the model into the place of the one that is served."""
    shutil.copyfile(model / "model.onnx", place / "new")
    (place / "new").replace(place / "model.onnx")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-mb", type=int, default=512, help="of 2**20 bytes")
    parser.add_argument("--keys", type=int, default=400_000)
    parser.add_argument("--state", type=int, default=264, help="float32 numbers, even")
    args = parser.parse_args()
    group = new_group(args.limit_mb << 20)
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, get_context("spawn")) as maker:
        folder = Path(name)
        first, second, hostile = maker.submit(make_models, folder, args.state).result()
        place = Path(shutil.copytree(first, folder / "served"))
        with EmbeddedBroker(folder / "kafka") as kafka:
            broker = connect(kafka.bootstrap_servers)
            topics = make_topics(broker, "limit", PARTITIONS)
            value = b'{"ts": %d, "value": 1.5}' % START_MS
            send(
                broker,
                topics["input_topic"],
                ((i % PARTITIONS, b"request-%08d" % i, value) for i in range(args.keys)),
            )
            WorkerProcess.program = ("-c", IN_GROUP + "sys.exit(main())", str(group), "serve")
            worker = WorkerProcess(place, kafka.bootstrap_servers, folder / "log", topics)
            process = psutil.Process(worker.process.pid)
            print(*re.findall(r".*series are kept in memory.*", worker.log), flush=True)
            print("\n| | RSS, MB | peak, MB | series | evicted |\n|---|---|---|---|---|")

            def row(what: str) -> None:
                peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
                assert peak is not None
                held, gone = worker.metric("series"), worker.metric("resets_total")
                rss = process.memory_info().rss >> 20
                print(f"| {what} | {rss} | {int(peak[1]) >> 10} | {held:,.0f} | {gone:,.0f} |", flush=True)

            worker.wait(lambda: worker.metric("forecasts_total") >= args.keys)
            row(f"after {args.keys:,} keys")
            publish(hostile, place)
            worker.wait(lambda: worker.metric("model_swaps_total") >= 1)
            row("after a model of 64 GB is refused")
            print(*re.findall(r".*is refused.*", worker.log), flush=True)
            publish(second, place)
            worker.wait(lambda: worker.metric("model_swaps_total") >= 2)
            row("after a swap")
            code, log = worker.end()
            assert code == 0, log
            broker.close()
    group.parent.rmdir()


if __name__ == "__main__":
    main()
