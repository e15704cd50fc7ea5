#!/bin/sh
# Trains a candidate and publishes it if it is not worse than the model in service, on rows that are new to both.
#   CONFIG, DATA   the training config, and the readings
#   MODEL          where the workers look
#   TEST_DAYS, VALIDATE_DAYS   rolling dates: the last so many days test, so many before them validate. Unset: the config's
#   TOLERANCE      how much worse a candidate may be, as a share
set -eu
: "${CONFIG:?}" "${DATA:?}" "${MODEL:?}"
candidate=$(mktemp -d)
set -- train "$CONFIG" --data "$DATA" --out "$candidate"
if [ -n "${TEST_DAYS:-}" ]; then
  ago() { date -u -d "$1 days ago" +%Y-%m-%dT00:00:00Z; }
  set -- "$@" --train-until "$(ago $((TEST_DAYS + ${VALIDATE_DAYS:?})))" --validate-until "$(ago "$TEST_DAYS")"
fi
tidecast "$@" --quiet
tidecast publish --candidate "$candidate" --model "$MODEL" --data "$DATA" --tolerance "${TOLERANCE:-0}"
