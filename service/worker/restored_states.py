"""From records of the changelog to states in a store; what cannot be used is returned, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tidecast.service.errors import ChangelogError
from tidecast.service.state.codec import check_record
from tidecast.service.state.offset_metadata import Committed
from tidecast.service.state.store import SeriesStore
from tidecast.service.worker.partition import RestoreProgress

_AT_ONCE = 1_000  # series decoded and put into the store together, so that it takes little memory


def put_states(
    partition: int,
    progress: RestoreProgress,
    records: Mapping[bytes, bytes | None],
    strangers: Collection[bytes | None],
) -> dict[bytes, ChangelogError]:
    """Put states, and tombstones (None), of one partition into its model's store; those that cannot be used, and why.

    `strangers`: series of which a record has headers that no group can have written.
    """
    store, codec, end = progress.served.store, progress.codec, progress.input_end
    before = len(store)
    states = {key: value for key, value in records.items() if value is not None}
    refused: dict[bytes, ChangelogError] = {}
    useless = set(states) if progress.rebuild else set()
    ours = [(key, value) for key, value in states.items() if key not in useless]
    for key, value in records.items():
        if value is None or key in useless:
            store.discard(key)
    # Where the committed states have this layout, any other was left behind by an earlier model.
    known = progress.committed is not None and progress.committed.layout is not None and not progress.rebuild
    for some in (ours[at : at + _AT_ONCE] for at in range(0, len(ours), _AT_ONCE)):
        try:
            b"\n".join([key for key, _ in some]).decode()
            snapshots = codec.decode_many([value for _, value in some])
            beyond = end is not None and bool((snapshots.offsets >= end).any())
        except (ChangelogError, UnicodeDecodeError):
            beyond = True
        if beyond or strangers:  # one of them, perhaps
            for key, value in some:
                try:
                    check_record(key, value, codec=codec, end=end)
                    if key in strangers:
                        raise ChangelogError("a changelog record has a header that is not UTF-8")
                except ChangelogError as error:
                    if known and error.layout is not None:
                        useless.add(key)
                    else:
                        refused[key] = error
                    store.discard(key)
            some = [(key, value) for key, value in some if key not in refused and key not in useless]
            snapshots = codec.decode_many([value for _, value in some])
        store.restore([key for key, _ in some], partition, snapshots)
        if snapshots.changed:
            _write_again(store, [some[row][0] for row in snapshots.changed], progress.committed)
    damaged = {key for key, error in refused.items() if not error.intact}
    progress.useless = progress.useless - records.keys() | useless | damaged
    for key in records.keys() & progress.strange.keys():
        del progress.strange[key]
    progress.series += len(store) - before
    return refused


def _write_again(store: SeriesStore, keys: Sequence[bytes], committed: Committed | None) -> None:
    """Let the changelog get the states of these series once more, in the form in which they are here."""
    slots = store.find_all(keys)
    from_offset = 0 if committed is None else committed.offset if committed.snapshot is None else committed.snapshot
    store.dirty_since[slots[slots >= 0]] = from_offset
