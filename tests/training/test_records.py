"""Log lines and the metric that says what is best."""

import pytest

from eao.errors import ConfigError
from eao.training.records import EpochRecord, EpochSums, Monitor


def record(epoch: int, **validation: float) -> EpochRecord:
    return EpochRecord(
        epoch, epoch * 10, 2.0 / epoch, {"text_video": 1.0}, 0.1, 5.0, 1.0, validation={"t2va": validation}
    )


def test_a_record_is_one_flat_mapping_for_trackers():
    line = record(2, R1=31.0)
    line.validation_loss = {"loss": 0.5}
    assert line.metrics() == {
        "train/epoch": 2,
        "train/loss": 1.0,
        "train/terms/text_video": 1.0,
        "train/learning_rate": 0.1,
        "train/clips_per_second": 5.0,
        "validation/loss": 0.5,
        "validation/t2va/R1": 31.0,
    }


def test_sums_are_means_over_the_steps_that_had_a_term():
    sums = EpochSums()
    sums.add(1.0, {"text_video": 2.0, "text_audio": 3.0}, clips=4)
    sums.add(3.0, {"text_video": 4.0}, clips=4)
    sums.seconds = 2.0
    line = sums.record(epoch=1, step=2, learning_rate=0.1)
    assert line.loss == 2 and line.terms == {"text_video": 3.0, "text_audio": 3.0} and line.clips_per_second == 4


def test_sums_go_on_from_their_state():
    sums = EpochSums()
    sums.add(1.0, {"text_video": 2.0}, clips=4)
    again = EpochSums(**sums.state_dict())
    for each in (sums, again):
        each.add(2.0, {"text_video": 1.0}, clips=4)
    assert again == sums


@pytest.mark.parametrize("text", ["best validation/t2v/R1", "a b c", ""])
def test_a_monitor_of_another_form_is_an_error(text):
    with pytest.raises(ConfigError, match="for example"):
        Monitor(text)


def test_a_metric_that_is_not_measured_is_an_error_that_names_one_that_is():
    with pytest.raises(ConfigError, match="for example validation/t2va/R1"):
        Monitor("max validation/t2v/R1").value(record(1, R1=1.0))


@pytest.mark.parametrize(("mode", "best"), [("max ", [True, True, False, True]), ("min ", [True, False, True, False])])
def test_a_tie_with_the_best_counts_as_better_and_waiting_is_counted(mode, best):
    monitor = Monitor(mode + "validation/t2va/R1")
    values = [3.0, 4.0, 2.0, 4.0]
    assert [monitor.update(value) for value in values] == best
    assert monitor.update(monitor.best) and monitor.epochs_without_improvement == 0
    monitor.update(0.0 if mode == "max " else 9.0)
    monitor.update(float("nan"))
    assert monitor.epochs_without_improvement == 2


def test_an_epoch_without_validation_is_not_counted():
    monitor = Monitor("validation/t2va/R1")
    unmeasured = EpochRecord(1, 10, 1.0, {}, 0.1, 1.0, 1.0)
    assert monitor.value(unmeasured) is None
    assert not monitor.update(None) and monitor.epochs_without_improvement == 0


def test_the_training_loss_can_be_monitored_without_validation():
    unvalidated = EpochRecord(1, 10, 1.5, {}, 0.1, 1.0, 1.0)
    assert Monitor("min train/loss").value(unvalidated) == 1.5


def test_the_best_record_is_that_of_the_best_checkpoint():
    records = [record(1, R1=3.0), record(2, R1=5.0), record(3, R1=5.0), record(4, R1=1.0)]
    assert Monitor("validation/t2va/R1").best_record(records).epoch == 3
    assert Monitor("min validation/t2va/R1").best_record(records).epoch == 4
    assert Monitor(None).best_record(records).epoch == 4


def test_a_monitor_goes_on_from_its_state():
    monitor, again = Monitor("min train/loss"), Monitor("min train/loss")
    for value in (2.0, 3.0, 2.5):
        monitor.update(value)
    again.load_state_dict(monitor.state_dict())
    assert again.best == 2.0 and again.epochs_without_improvement == 2
