"""Records reach their observers in batches, in order, and none is lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from records import ended

from nexus_gateway.proxy.record import RequestRecord
from nexus_gateway.telemetry.recorder import BATCH_S, MAX_BATCH, Recorder


@pytest.fixture
def recorder() -> Recorder:
    return Recorder([])


@pytest.fixture
def observed(recorder: Recorder) -> list[RequestRecord]:
    records: list[RequestRecord] = []
    recorder.observers.append(records.append)
    return records


def test_without_a_timer_each_record_is_observed_at_once(
    recorder: Recorder, observed: list[RequestRecord]
) -> None:
    recorder.record(ended(id="a"))
    assert [record.id for record in observed] == ["a"]


def test_with_a_timer_a_batch_is_observed_once_and_in_order(
    recorder: Recorder, observed: list[RequestRecord]
) -> None:
    timers: list[tuple[float, Callable[[], None]]] = []
    recorder.later = lambda delay_s, flush: timers.append((delay_s, flush))
    for id in ("a", "b", "c"):
        recorder.record(ended(id=id))
    assert not observed
    ((delay_s, flush),) = timers
    assert delay_s == BATCH_S
    flush()
    flush()
    assert [record.id for record in observed] == ["a", "b", "c"]
    recorder.record(ended(id="d"))
    assert len(timers) == 2


def test_a_full_batch_does_not_wait(recorder: Recorder, observed: list[RequestRecord]) -> None:
    recorder.later = lambda delay_s, flush: None
    for number in range(MAX_BATCH):
        recorder.record(ended(id=str(number)))
    assert len(observed) == MAX_BATCH


def test_a_failing_observer_does_not_affect_the_others(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(record: RequestRecord) -> None:
        raise RuntimeError

    records: list[RequestRecord] = []
    recorder.observers += [fail, records.append]
    recorder.record(ended())
    assert len(records) == 1
    assert "an observer failed" in caplog.text


def test_after_its_close_a_recorder_waits_for_no_batch() -> None:
    records: list[RequestRecord] = []
    recorder = Recorder([records.append])
    recorder.later = lambda delay_s, flush: None
    recorder.record(ended(id="a"))
    recorder.close()
    recorder.record(ended(id="b"))
    assert [record.id for record in records] == ["a", "b"]
