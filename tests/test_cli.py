"""The command line: every command is there, and what is wrong costs one message and exit code 2, not a traceback."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from eao import cli
from eao.errors import ParityError
from eao.training.run import run_training

GOLDEN = Path(__file__).parent / "golden/checkpoints"
COMMANDS = [
    "train",
    "eval",
    "convert",
    "pack",
    "extract",
    "embed",
    "index",
    "search",
    "export",
    "export-backbone",
    "bench",
    "demo",
    "doctor",
]


@pytest.fixture
def eao(monkeypatch, capfd):
    """Run a command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["eao", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def trained(experiment, tmp_path):
    """A run folder of a small model."""
    validation = experiment().data.validation.model_dump()
    run_training(experiment(trainer={"epochs": 1}, data={"test": validation}), tmp_path / "run", quiet=True)
    return tmp_path / "run"


def test_help_names_every_command(eao):
    code, out, _ = eao("--help")
    assert code == 0
    assert all(f" {command} " in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(eao, command):
    code, out, _ = eao(command, "--help")
    assert code == 0 and "Usage" in out


def test_help_and_version_do_not_load_torch():
    script = "import sys; from eao.cli import app; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frobnicate"], "No such command"),
        (["train", "-c", "nope"], "neither a file nor a shipped experiment"),
        (["train", "-c", "demo/demo", "optimiser.lr=1"], "did you mean optimizer"),
        (["train", "-c", "demo/demo", "optimizer.lr=fast"], "optimizer.lr"),
        (["train", "-c", "demo/demo"], "data.train is not set"),
        (["eval", "nothing"], "no checkpoint at nothing"),
        (["convert", "nothing.pth", "out"], "nothing.pth"),
        (["extract", "nothing", "-o", "out"], "no such file or folder: nothing"),
        (["extract", ".", "-o", "out"], "holds no video"),
        (["embed", "-m", "nothing", "--text", "x"], "nothing"),
        (["index", ".", "-m", "nothing"], "nothing"),
        (["search", "x", "-i", "nothing"], "there is no index at nothing"),
        (["export", "nothing"], "nothing"),
        (["bench", "nothing"], "nothing"),
        (["search", "x", "-k", "0"], "greater than or equal to 1"),
    ],
)
def test_bad_input_is_one_message_with_exit_code_2_and_writes_nothing(eao, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = eao(*arguments)
    assert code == 2
    assert says in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_truncated_video_is_reported_and_the_command_fails(eao, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + os.urandom(500))
    code, _, err = eao("extract", tmp_path, "-o", tmp_path / "features")
    assert code == 2
    assert "broken.mp4" in err and "none of the 1 files could be read" in err
    failed = json.loads((tmp_path / "features/failed.jsonl").read_text())
    assert failed["file"].endswith("broken.mp4") and failed["reason"]


def test_training_and_evaluation_as_commands(eao, experiment, tmp_path):
    config = experiment(trainer={"epochs": 1})
    config.save(tmp_path / "small.yaml")
    test_set = f"data.test={json.dumps(config.data.validation.model_dump())}"
    code, out, _ = eao("train", "-c", tmp_path / "small.yaml", test_set, "-o", tmp_path / "run", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["training items"] == 16 and not (tmp_path / "run").exists()
    code, out, _ = eao("train", "-c", tmp_path / "small.yaml", test_set, "-o", tmp_path / "run", "--json")
    assert code == 0 and json.loads(out)["epochs"] == 1
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["data"]["test"] == config.data.validation.model_dump()
    code, out, _ = eao("eval", tmp_path / "run", "--json", "-o", tmp_path / "metrics.json")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "metrics.json").read_text())
    assert json.loads(out)["items"] == 8 and 0 <= json.loads(out)["metrics"]["t2va"]["R1"] <= 100
    code, _, err = eao("train", "-c", tmp_path / "small.yaml", "-o", tmp_path / "run")
    assert code == 2 and "--resume" in err


def test_sentences_are_embedded_to_json_or_to_a_file(eao, trained, tmp_path):
    code, out, _ = eao("embed", "-m", trained, "--text", "red dog", "--text", "blue cat")
    rows = np.array(json.loads(out))
    assert code == 0 and rows.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    code, _, _ = eao("embed", "-m", trained, "--text", "red dog", "--text", "blue cat", "-o", tmp_path / "rows.npy")
    assert code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows.astype(np.float32))


@pytest.mark.parametrize(("sentence", "says"), [("", "has no words"), ("zzz qqq", "none of the words in 'zzz qqq'")])
def test_a_sentence_without_known_words_is_an_error(eao, trained, sentence, says):
    code, _, err = eao("embed", "-m", trained, "--text", sentence)
    assert code == 2 and says in err


def test_a_full_disk_is_one_message_and_leaves_no_file(eao, trained, tmp_path, monkeypatch):
    def full(path, array):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(np, "save", full)
    target = tmp_path / "out" / "rows.npy"
    code, _, err = eao("embed", "-m", trained, "--text", "red dog", "-o", target)
    assert code == 2 and "No space left" in err and "Traceback" not in err
    assert not list(target.parent.iterdir())


def test_failed_parity_exits_with_1(eao, trained, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ParityError("text: cosine min 0.5 < 0.99999")

    monkeypatch.setattr("eao.export.run.export_bundle", fail)
    code, _, err = eao("export", trained, "-o", tmp_path / "bundle")
    assert code == 1 and "[x] text: cosine min" in err


def test_a_bug_keeps_its_traceback(eao, monkeypatch):
    def bug():
        raise RuntimeError("a bug")

    monkeypatch.setattr("eao.doctor.diagnose", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        eao("doctor")


def test_ctrl_c_during_training_leaves_whole_epochs_and_resumes(eao, experiment, tmp_path):
    config = experiment(trainer={"epochs": 100_000, "validate_every": 100_000})
    config.save(tmp_path / "long.yaml")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "eao", "train", "-c", str(tmp_path / "long.yaml"), "-o", str(run)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 300
        while not (run / "latest/training.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing, if it has ended
    assert process.returncode == 2 and "interrupted" in err and "Traceback" not in err
    assert not [p for p in run.iterdir() if p.name.startswith(".")]
    done = len((run / "log.jsonl").read_text().splitlines())
    code, out, _ = eao(
        "train", "-c", tmp_path / "long.yaml", f"trainer.epochs={done + 1}", "-o", run, "--resume", "--json"
    )
    assert code == 0 and json.loads(out)["epochs"] == done + 1


def test_doctor_says_for_everything_missing_what_to_install(eao):
    code, out, _ = eao("doctor", "--json")
    assert code == 0
    report = json.loads(out)
    checks = report["checks"] if isinstance(report, dict) else report
    assert all(check["usable"] or check["detail"] for check in checks)
    assert {"torch", "onnxruntime CPUExecutionProvider"} <= {check["name"] for check in checks if check["usable"]}


def test_a_converted_checkpoint_takes_settings_but_not_of_the_model(eao, tmp_path):
    source = GOLDEN / "pre_permod"
    code, _, err = eao("convert", source, tmp_path / "native", "data.text.path=vectors.bin", "--json")
    assert code == 0, err
    assert yaml.safe_load((tmp_path / "native/config.yaml").read_text())["data"]["text"]["path"] == "vectors.bin"
    code, _, err = eao("convert", source, tmp_path / "other", "model.embedding_dim=7")
    assert code == 2 and "cannot be changed" in err and not (tmp_path / "other").exists()
