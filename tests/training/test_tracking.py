"""Every tracker against its own library, offline: what was logged is read back by the library's own reader."""

import contextlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eao.config import Config, TrackingConfig
from eao.errors import ConfigError, MissingDependencyError
from eao.training.tracking import Trackers, build_trackers
from eao.training.tracking.trackers import BACKENDS

EXPERIMENT = Config.model_validate({"name": "small", "seed": 7, "model": {"fusion": {"depth": 2}}})


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Any address but a Unix socket's (by which W&B speaks to its own process) is an error."""
    connect = socket.socket.connect

    def refuse(connection, address):
        if connection.family != socket.AF_UNIX:
            raise AssertionError(f"a tracker connects to {address}")
        connect(connection, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


def start(backend: str, folder: Path, resume_step: int | None = None, **tracking) -> Trackers:
    return build_trackers(TrackingConfig(backends=(backend,), **tracking), EXPERIMENT, folder, resume_step=resume_step)


def record(backend: str, folder: Path) -> None:
    """Steps 1 to 3, the third of which a run resumed at step 2 records again."""
    with start(backend, folder) as trackers:
        for step in (1, 2, 3):
            trackers.log({"train/loss": 1 / step, "validation/t2v+a/R1": 10.0 * step}, step)


def record_on(backend: str, folder: Path) -> None:
    """A run resumed at step 2 that comes to other values, and fails."""
    with pytest.raises(ZeroDivisionError), start(backend, folder, resume_step=2) as trackers:
        for step in (3, 4):
            trackers.log({"train/loss": 100.0 + step}, step)
        raise ZeroDivisionError


FIRST = [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
RESUMED = [(1, 1.0), (2, 1 / 2), (3, 103.0), (4, 104.0)]


# csv


def csv_series(folder: Path, name: str) -> list[tuple[int, float]]:
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    assert header == "step,name,value"
    rows = [line.split(",") for line in lines]
    return [(int(row[0]), float(row[2])) for row in rows if row[1] == name]


def test_the_table_holds_every_value_at_its_step(tmp_path):
    record("csv", tmp_path)
    assert csv_series(tmp_path, "train/loss") == FIRST
    assert csv_series(tmp_path, "validation/t2v+a/R1") == [(1, 10.0), (2, 20.0), (3, 30.0)]


def test_a_resumed_table_reads_as_one_that_was_not_interrupted(tmp_path):
    record("csv", tmp_path)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("3,train/l")  # cut off by the end of the process
    record_on("csv", tmp_path)
    assert csv_series(tmp_path, "train/loss") == RESUMED
    assert csv_series(tmp_path, "validation/t2v+a/R1") == [(1, 10.0), (2, 20.0)]


def test_a_value_is_in_the_table_as_soon_as_it_is_logged(tmp_path):
    with start("csv", tmp_path) as trackers:
        trackers.log({"train/loss": 0.1}, 5)
        assert csv_series(tmp_path, "train/loss") == [(5, 0.1)]


def test_a_new_run_begins_a_new_table(tmp_path):
    record("csv", tmp_path)
    start("csv", tmp_path).close("finished")
    assert csv_series(tmp_path, "train/loss") == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "header"),
        ("epoch,loss\n1,2\n", "header"),
        ("step,name,value\n1,a,2\n2,a\n", "row 2"),
        ("step,name,value\n1,a,x\n", "row 1"),
    ],
)
def test_a_table_of_another_kind_is_not_continued(tmp_path, text, fault):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ConfigError, match=rf"metrics\.csv: .*{fault}"):
        start("csv", tmp_path, resume_step=1)
    assert (tmp_path / "metrics.csv").read_text() == text


# tensorboard


def test_tensorboard_reads_scalars_and_configuration_and_forgets_what_was_after_the_resumed_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read():
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
        return [(e.step, e.value) for e in events.Scalars("train/loss")], set(events.Tags()["scalars"]), text

    record("tensorboard", tmp_path)
    series, names, text = read()
    assert [s for s, _ in series] == [1, 2, 3]
    assert [v for _, v in series] == pytest.approx([v for _, v in FIRST])  # TensorBoard keeps float32
    assert names == {"train/loss", "validation/t2v_a/R1"}
    assert "    name: small\n" in text and "      depth: 2\n" in text
    record_on("tensorboard", tmp_path)
    assert read()[0] == RESUMED


# mlflow


def mlflow_run(folder: Path, url: str | None = None):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=url or f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("eao").experiment_id])
    series = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return run, {name: [(m.step, m.value) for m in history] for name, history in series.items()}


def test_mlflow_has_the_run_and_continues_it(tmp_path):
    record("mlflow", tmp_path)
    run, series = mlflow_run(tmp_path)
    assert series == {"train/loss": FIRST, "validation/t2v_a/R1": [(1, 10.0), (2, 20.0), (3, 30.0)]}
    assert run.info.run_name == "small" and run.info.status == "FINISHED"
    assert run.data.params["model.fusion.depth"] == "2" and run.data.params["seed"] == "7"
    record_on("mlflow", tmp_path)
    resumed, series = mlflow_run(tmp_path)
    assert resumed.info.run_id == run.info.run_id and resumed.info.status == "FAILED"
    # MLflow deletes no value: that of step 3 stands there twice.
    assert series["train/loss"] == [*FIRST, (3, 103.0), (4, 104.0)]


def test_mlflow_at_the_users_url(tmp_path):
    url = f"sqlite:///{tmp_path}/mine.db"
    start("mlflow", tmp_path / "run", url=url).close("interrupted")
    assert mlflow_run(tmp_path, url)[0].info.status == "KILLED"
    assert not (tmp_path / "run/mlflow.db").exists()


def test_a_server_needs_the_online_mode(tmp_path):
    with pytest.raises(ConfigError, match="leads to a server"):
        start("mlflow", tmp_path, url="https://mlflow.invalid")


# wandb


def wandb_records(path: Path) -> list:
    """The records of an offline file: a LevelDB log of protocol buffers, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, records, parts, position = path.read_bytes(), [], b"", 7
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


def wandb_run(path: Path) -> tuple[dict, list[dict], int]:
    import wandb

    wandb.teardown()  # the process that writes the file may be a moment behind
    records = wandb_records(path)
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in r.history.item}
        for r in records
        if r.WhichOneof("record_type") == "history"
    ]
    (code,) = [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"]
    return {"id": run.run_id, "name": run.display_name, "project": run.project, "config": config}, history, code


def test_wandb_writes_a_run_to_sync_and_continues_it_under_the_same_id(tmp_path):
    record("wandb", tmp_path)
    (first,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    run, history, code = wandb_run(first)
    assert (run["name"], run["project"], code) == ("small", "eao", 0)
    assert run["config"]["model"]["fusion"]["depth"] == 2
    assert [(row["_step"], row["train/loss"]) for row in history] == FIRST
    assert [row["validation/t2v+a/R1"] for row in history] == [10.0, 20.0, 30.0]
    os.rename(first.parent, first.parent.with_name("first"))  # both folders may be of the same second
    record_on("wandb", tmp_path)
    (second,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    resumed, history, code = wandb_run(second)
    assert resumed["id"] == run["id"] and code == 1
    assert [(row["_step"], row["train/loss"]) for row in history] == [(3, 103.0), (4, 104.0)]


# sacred


def sacred_run(folder: Path) -> tuple[dict, dict, dict]:
    (run,) = [path.parent for path in folder.glob("sacred/*/run.json")]
    return tuple(json.loads((run / f"{name}.json").read_text()) for name in ("run", "config", "metrics"))


def test_sacred_has_the_run_and_continues_it(tmp_path):
    record("sacred", tmp_path)
    run, config, metrics = sacred_run(tmp_path)
    assert run["status"] == "COMPLETED" and run["experiment"]["name"] == "small"
    assert config["model"]["fusion"]["depth"] == 2 and config["seed"] == 7
    assert list(zip(metrics["train/loss"]["steps"], metrics["train/loss"]["values"], strict=True)) == FIRST
    record_on("sacred", tmp_path)
    resumed, _, metrics = sacred_run(tmp_path)
    assert resumed["status"] == "FAILED" and resumed["start_time"] == run["start_time"]
    assert list(zip(metrics["train/loss"]["steps"], metrics["train/loss"]["values"], strict=True)) == RESUMED
    assert len(metrics["train/loss"]["timestamps"]) == 4 and metrics["validation/t2v+a/R1"]["steps"] == [1, 2]


def test_sacred_writes_while_the_run_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("eao.training.tracking.sacred.BEAT", 0.0)
    with start("sacred", tmp_path) as trackers:
        trackers.log({"train/loss": 0.5}, 1)
        run, _, metrics = sacred_run(tmp_path)
        assert run["status"] == "RUNNING" and metrics["train/loss"]["values"] == [0.5]


def test_damaged_sacred_files_are_not_continued(tmp_path):
    record("sacred", tmp_path)
    (path,) = tmp_path.glob("sacred/*/metrics.json")
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot continue the Sacred run"):
        start("sacred", tmp_path, resume_step=2)


# neptune


def neptune_run(folder: Path) -> dict:
    """The operations of an offline folder by path: the last value of a field, all (step, value) of a series."""
    from threading import RLock

    from neptune.core.components.queue.disk_queue import DiskQueue
    from neptune.internal.operation import LogFloats, Operation

    assert json.loads((folder / "metadata.json").read_text())["mode"] == "offline"
    queue, fields = DiskQueue(folder, lambda o: o.to_dict(), Operation.from_dict, RLock()), {}
    while (element := queue.get()) is not None:
        name = "/".join(element.obj.path)
        if isinstance(element.obj, LogFloats):
            fields.setdefault(name, []).extend((v.step, v.value) for v in element.obj.values)
        else:
            fields[name] = getattr(element.obj, "value", None)
    queue.close()
    return fields


def test_neptune_writes_a_run_to_sync_and_names_the_same_run_when_resumed(tmp_path):
    record("neptune", tmp_path)
    (first,) = tmp_path.glob("neptune/offline/run__*")
    run = neptune_run(first)
    assert run["sys/name"] == "small" and run["status"] == "finished" and run["sys/failed"] is False
    assert run["config/model/fusion/depth"] == 2
    assert run["train/loss"] == FIRST and run["validation/t2v+a/R1"] == [(1, 10.0), (2, 20.0), (3, 30.0)]
    record_on("neptune", tmp_path)
    (second,) = set(tmp_path.glob("neptune/offline/run__*")) - {first}
    resumed = neptune_run(second)
    assert resumed["run_id"] == run["run_id"]
    assert resumed["status"] == "failed" and resumed["sys/failed"] is True
    assert resumed["train/loss"] == [(3, 103.0), (4, 104.0)]


# all of them


class Broken:
    """Stands for a tracker whose disk is full."""

    def __init__(self):
        self.calls = []

    def log(self, metrics, step):
        self.calls.append(step)
        raise OSError("No space left on device")

    def close(self, status):
        self.calls.append(status)
        raise OSError("No space left on device")


def test_training_goes_on_without_a_tracker_that_fails_and_one_warning_says_so(tmp_path, caplog):
    broken = Broken()
    trackers = start("csv", tmp_path)
    trackers._trackers = {"broken": broken, **trackers._trackers}
    with caplog.at_level(logging.WARNING), trackers:
        trackers.log({"train/loss": 1.0}, 1)
        trackers.log({"train/loss": 2.0}, 2)
    assert csv_series(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0)]
    assert broken.calls == [1, "finished"]
    assert len(caplog.records) == 1 and "broken" in caplog.text and "No space left" in caplog.text


@pytest.mark.parametrize(
    ("error", "status"), [(None, "finished"), (ValueError, "failed"), (KeyboardInterrupt, "interrupted")]
)
def test_how_a_run_ended_is_passed_on(error, status):
    statuses = []

    class Watcher:
        def log(self, metrics, step):
            raise AssertionError

        def close(self, status):
            statuses.append(status)

    expected = pytest.raises(error) if error is not None else contextlib.nullcontext()
    with expected, Trackers({"watcher": Watcher()}):
        if error is not None:
            raise error
    assert statuses == [status]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "csv"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, backend):
    for module in (
        backend,
        f"{backend}.observers",
        f"{backend}.host_info",
        "torch.utils.tensorboard",
        f"{backend}.entities",
    ):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(MissingDependencyError, match=rf"needs the package {backend}(.|\n)*'\.\[{backend}\]"):
        start(backend, tmp_path)


def test_a_tracker_that_cannot_start_is_an_error_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="cannot start tracking with neptune: .*API token") as caught:
        start("neptune", tmp_path, mode="online")
    assert "\n" not in caught.value.message and "\x1b" not in caught.value.message


def test_what_is_logged_may_be_any_kind_of_number(tmp_path):
    with start("csv", tmp_path) as trackers:
        trackers.log({"train/loss": np.float32(0.5)}, 1)
    assert csv_series(tmp_path, "train/loss") == [(1, 0.5)]


LEAVES = """
import json, pathlib, random, sys

events = []
INET = ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.gethostbyname")
sys.addaudithook(lambda event, args: events.append(str((event, args))) if event in INET and (
    event != "socket.connect" or isinstance(args[1], tuple)) else None)

import numpy, torch
from eao.config import Config, TrackingConfig
from eao.training.tracking import build_trackers
from eao.training.tracking.trackers import BACKENDS

def states():
    return repr((random.getstate(), numpy.random.get_state(), torch.get_rng_state().tolist()))

before = states()
with build_trackers(TrackingConfig(backends=tuple(BACKENDS)), Config(), sys.argv[1]) as trackers:
    trackers.log({"train/loss": 1.0}, 1)
    children = pathlib.Path("/proc/self/task").glob("*/children")
    commands = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\\0")
                for path in children for pid in path.read_text().split()]
print(json.dumps({"events": events, "commands": commands, "same": before == states()}))
"""


@pytest.mark.slow
def test_offline_trackers_reach_for_no_network_and_leave_the_random_state_alone(tmp_path):
    # A process of its own, which does not look like a test: there MLflow would send its usage data.
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "CI", "GITHUB", "MLFLOW", "WANDB"))
    }
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # nor does anything else print on standard output
    assert found["events"] == []
    (core,) = [command for command in found["commands"] if "wandb-core" in command[0]]
    assert "--no-observability" in core
    assert found["same"]
