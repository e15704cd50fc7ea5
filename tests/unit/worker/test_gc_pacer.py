"""Garbage that refers to itself is collected though Python does not look for it by itself any more."""

import subprocess
import sys

PROGRAM = """
import gc, weakref
from tidecast.service.worker.gc_pacer import GcPacer
now = [0.0]
class Loop: pass
def garbage():
    loop = Loop()
    loop.me = loop
    return weakref.ref(loop)
gc_pacer = GcPacer(lambda: now[0])
gc_pacer.begin()
assert not gc.isenabled()
first = garbage()
for _ in range(100_000):
    gc_pacer.between_batches()
assert first() is not None, "it looks too often"
now[0] = 1.0
gc_pacer.between_batches()
assert first() is None, "what refers to itself is never let go"
second = garbage()
gc_pacer.between_batches()
assert second() is not None
now[0] = 2.5
gc_pacer.between_batches()
assert second() is None
"""


def test_garbage_that_refers_to_itself_goes_within_a_second_and_not_at_each_turn():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=60)  # a process of its own: it turns gc off
