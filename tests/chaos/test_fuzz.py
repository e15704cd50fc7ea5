"""A short run of the fuzzer; the long one: `python -m tests.chaos.fuzz --records 100000`."""

from tests.chaos.fuzz import run
from tidecast.service.input.rejected import DeadLetterReason

# Not asked for, not to be had from this model's inputs, or only with --input.
NEVER_HERE = {"late", "duplicate", "non_finite_state", "bad_format", "unknown_schema", "other_partition"}


def test_every_kind_of_invalid_record_has_one_outcome_and_changes_no_other_series():
    fates = run(8_000, seed=7)
    assert fates.total() == 8_000
    missing = {str(reason) for reason in DeadLetterReason} - set(fates) - NEVER_HERE
    assert not missing - {"too_large"}, "the fuzzer no longer makes all kinds of rubbish"
    assert fates["forecasts"] > 2_000
