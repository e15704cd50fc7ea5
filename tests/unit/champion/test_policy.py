"""What a worker decides, follows, and leaves to others."""

import numpy as np
import pytest

from tests.support.models import START_MS, STEP_MS, counting_spec
from tidecast.service.broker.memory.broker import MemoryBroker
from tidecast.service.champion.comparison import FEWEST_READINGS
from tidecast.service.champion.decisions import Decision, DecisionReader, read_history, write_decision
from tidecast.service.champion.follower import DecisionFollower
from tidecast.service.champion.policy import ChampionPolicy
from tidecast.service.config.settings import Settings
from tidecast.service.errors import BrokerUnavailable
from tidecast.service.input.rejected import DeadLetterReason
from tidecast.service.model.spec import Diagnostic
from tidecast.service.observability.metrics import Metrics
from tidecast.service.pipeline.batch import MemberScores, ScoredBatch

SERIES = 20
ERROR = [Diagnostic("error", "absolute_error", "value", 1)]
CHAMPION, SHADOW, OTHER = (counting_spec(hash=letter * 64, diagnostics=ERROR) for letter in "abc")


class Group:
    """A worker's policy with the decisions topic in memory; the thread's work is done by `look`."""

    def __init__(self, **settings):
        self.settings = Settings(**{"promote": "auto", "promote_seconds": 0.0} | settings)
        self.broker = MemoryBroker()
        self.broker.create_topic("tidecast-decisions", 1)
        self.metrics = Metrics(CHAMPION, DeadLetterReason)
        self.follower = DecisionFollower(self.broker, self.settings)
        self.reader = DecisionReader(self.broker, self.settings)
        self.policy = ChampionPolicy(self.settings, self.follower, self.metrics, wall=lambda: 1_700_000_000.0)
        self.random = np.random.default_rng(0)
        self.step = 0

    def look(self):
        self.follower.look(self.reader)

    def answer(self, steps=FEWEST_READINGS, gain=0.2, champion=CHAMPION, shadows=(SHADOW,), warm=True):
        """Readings of each series; the first shadow's losses are smaller by `gain`."""
        keys = [b"series %d" % number for number in range(SERIES)] * steps
        ts = START_MS + STEP_MS * np.repeat(np.arange(self.step, self.step + steps), SERIES)
        self.step += steps
        members = []
        for number, spec in enumerate((champion, *shadows)):
            losses = np.abs(self.random.standard_normal((len(keys), 1))) * (1.0 - gain * (number == 1))
            ready = np.full(len(keys), warm or not number)
            members.append(MemberScores(spec, losses.astype(np.float32), ready))
        batch = ScoredBatch(keys, np.zeros(len(keys), dtype=np.int32), ts, members)
        self.policy.committed([batch])

    def decide(self, assigned=(0, 1)):
        """A turn of the loop, what the thread does then, and the next turn: who is to answer."""
        self.policy.champion(assigned)
        self.look()
        found = self.policy.champion(assigned)
        return None if found is None else found[0]

    def command(self, to, was=""):
        write_decision(
            self.broker, self.settings, Decision(ts=1, group=self.settings.group, was=was, to=to, by="command")
        )

    def promotions(self, by):
        return self.metrics.registry.get_sample_value("tidecast_promotions_total", {"by": by})


@pytest.fixture
def group():
    return Group()


def test_a_better_shadow_is_promoted_and_the_record_says_why(group, caplog):
    caplog.set_level("INFO")
    group.answer()
    assert group.decide() == SHADOW.id
    (found,) = read_history(group.broker, group.settings).decisions
    decision = found.decision
    assert (decision.was, decision.to, decision.by, decision.after) == (CHAMPION.id, SHADOW.id, "auto", -1)
    assert decision.ts == 1_700_000_000_000
    assert decision.evidence.e_value >= decision.evidence.needed == 100.0
    assert decision.evidence.readings == SERIES * FEWEST_READINGS
    lines = [record for record in caplog.records if "another model is to answer" in record.message]
    assert len(lines) == 1 and lines[0].model == SHADOW.id and lines[0].e_value == decision.evidence.e_value


def test_it_is_counted_once_it_is_in_force_and_only_once(group):
    group.answer()
    group.decide()
    assert group.promotions("auto") == 0
    for _ in range(2):
        group.policy.took_over(SHADOW.id, {0: CHAMPION.id}, {0: 5})
    assert group.promotions("auto") == 1


def test_the_same_model_as_a_shadow_is_not_promoted(group):
    group.answer(steps=5 * FEWEST_READINGS, gain=0.0)
    assert group.decide() is None


def test_readings_of_a_cold_shadow_are_no_evidence(group):
    group.answer(gain=0.9, warm=False)
    assert group.decide() is None


def test_nothing_is_decided_before_the_least_time_nor_without_auto():
    day = Group(promote_seconds=STEP_MS / 1_000 * 1_000)
    day.answer(steps=900)
    assert day.decide() is None
    day.answer(steps=200)
    assert day.decide() == SHADOW.id
    manual = Group(promote="by-command")
    manual.answer()
    assert manual.decide() is None


def test_the_worker_without_partition_0_leaves_the_decision_to_another(group):
    group.answer()
    assert group.decide(assigned=(1, 2)) is None
    assert group.decide(assigned=(0,)) == SHADOW.id


def test_of_several_shadows_more_evidence_is_needed_and_the_best_is_promoted(group):
    group.answer(shadows=(SHADOW, OTHER))
    assert group.decide() == SHADOW.id
    assert read_history(group.broker, group.settings).last.decision.evidence.needed == 200.0


def test_the_former_champion_may_win_its_place_back(group):
    group.answer()
    assert group.decide() == SHADOW.id
    group.answer(champion=SHADOW, shadows=(CHAMPION,))
    assert group.decide() == CHAMPION.id
    assert [each.decision.after for each in read_history(group.broker, group.settings).decisions] == [-1, 0]


def test_a_command_is_followed_and_the_comparison_begins_afresh(group):
    group.answer(steps=FEWEST_READINGS - 1)
    group.command(OTHER.id)
    assert group.decide() == OTHER.id
    group.policy.took_over(OTHER.id, {0: CHAMPION.id}, {0: 1})
    assert group.promotions("command") == 1
    group.answer(steps=2, champion=OTHER)
    assert group.decide() == OTHER.id


def test_a_command_that_comes_before_an_automatic_decision_makes_that_void(group):
    group.answer()
    group.policy.champion((0,))  # decides
    group.command(OTHER.id)
    assert group.decide() == OTHER.id
    assert [each.void for each in read_history(group.broker, group.settings).decisions] == [False, True]


def test_what_was_decided_before_the_start_is_followed_and_not_counted_again(group):
    group.command(SHADOW.id, was=CHAMPION.id)
    group.look()
    assert group.policy.champion((0,))[0] == SHADOW.id
    group.policy.took_over(SHADOW.id, {0: CHAMPION.id}, {0: 1})
    assert group.promotions("command") == 0


def test_a_shadow_of_another_target_is_said_once_and_never_promoted(group, caplog):
    stranger = counting_spec(hash="d" * 64, diagnostics=[Diagnostic("e", "absolute_error", "another", 1)])
    for _ in range(3):
        group.answer(shadows=(stranger,))
    assert group.decide() is None
    assert caplog.text.count("it cannot be compared") == 1


def test_while_kafka_does_not_answer_a_decision_waits_and_is_written_once(group, monkeypatch, caplog):
    group.answer()
    group.policy.champion((0,))
    down = BrokerUnavailable("Kafka does not answer")

    def refuse(*args):
        raise down

    with monkeypatch.context() as patched:
        patched.setattr("tidecast.service.champion.follower.write_decision", refuse)
        for _ in range(3):
            group.look()
            assert group.policy.champion((0,)) is None
    assert caplog.text.count("cannot be used now, trying again") == 1
    assert group.decide() == SHADOW.id
    assert len(read_history(group.broker, group.settings).decisions) == 1
