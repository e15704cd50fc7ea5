"""Who gives up partitions, and who need not, when a worker of three is restarted on a real Kafka."""

import re
from contextlib import ExitStack

from tests.support.serving import serving

ASSIGNED, REVOKED = (re.compile(rf"partitions {what} \w+=(\S*) all=(\S*)") for what in ("assigned", "revoked"))


def moves(worker, since=0):
    """How often partitions came and went, as the log says from a place on."""
    log = worker.log[since:]
    return len([found for found in ASSIGNED.findall(log) if found[0].strip('"')]), len(REVOKED.findall(log))


def share(worker):
    """The partitions that it has now."""
    found = re.findall(r"partitions (?:assigned|revoked) .*all=(\S*)", worker.log)
    return {int(p) for p in found[-1].strip('"').split(",") if p} if found else set()


def settle(workers, count):
    """Wait until each has its part of all of them."""
    workers[0].wait_for(
        "a share for each",
        lambda: sorted(p for w in workers for p in share(w)) == list(range(count)) and all(map(share, workers)),
    )


def start(stack, t, model, *flags):
    return stack.enter_context(serving("--model", model, *flags, *t.flags))


def test_a_named_worker_that_is_restarted_within_its_session_moves_no_partition_of_the_others(counted, model):
    t = counted(partitions=6, each=1)
    with ExitStack() as stack:
        workers = [start(stack, t, model, f"--instance=w{i}", "--session-timeout-seconds=45") for i in range(3)]
        settle(workers, 6)
        t.feed(10)
        t.read(t.forecasts, 60)
        seen = [len(w.log) for w in workers]
        for i in (2, 0, 1):  # the group's leader among them
            had = share(workers[i])
            assert workers[i].end()[0] == 0
            workers[i] = start(stack, t, model, f"--instance=w{i}", "--session-timeout-seconds=45")
            workers[i].wait_for("its partitions back", lambda w=workers[i], had=had: share(w) == had)
            t.feed(5)
            t.read(t.forecasts, t.steps * 6)
            others = [w for w in workers if w is not workers[i]]
            assert [moves(w, seen[workers.index(w)]) for w in others] == [(0, 0), (0, 0)], [w.log for w in others]
            seen[i] = len(workers[i].log)
        for worker in workers:
            assert worker.end()[0] == 0
    t.check()


def test_a_worker_without_a_name_that_leaves_moves_its_own_partitions_only(counted, model):
    t = counted(partitions=6, each=1)
    with ExitStack() as stack:
        workers = [start(stack, t, model) for _ in range(3)]
        settle(workers, 6)
        t.feed(10)
        t.read(t.forecasts, 60)
        had = [share(w) for w in workers]
        seen = [len(w.log) for w in workers]
        assert workers[2].end()[0] == 0
        settle(workers[:2], 6)
        for worker, before, at in zip(workers[:2], had[:2], seen[:2], strict=True):
            assert before < share(worker)
            assert moves(worker, at)[1] == 0, worker.log
        t.feed(5)
        t.read(t.forecasts, t.steps * 6)
        for worker in workers[:2]:
            assert worker.end()[0] == 0
    t.check()
