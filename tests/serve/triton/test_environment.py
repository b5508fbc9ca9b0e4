from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from eao.errors import MissingDependencyError, ServingError
from eao.serve.triton import environment as module
from eao.serve.triton.environment import VERSION, Environment, default_folder, prepare, requirements


def test_the_folder_is_in_the_cache_or_where_one_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EAO_TRITON_FOLDER", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "eao" / f"triton-{VERSION}"
    monkeypatch.setenv("EAO_TRITON_FOLDER", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"


def test_the_server_computes_with_the_versions_used_here() -> None:
    installed = importlib.metadata.version
    assert requirements(["python", "onnxruntime"]) == [
        "numpy<2",
        f"scipy=={installed('scipy')}",
        f"tokenizers=={installed('tokenizers')}",
        f"onnxruntime=={installed('onnxruntime')}",
    ]


def test_what_pip_says_is_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SERVER", str(tmp_path / "no-such-wheel.whl"))
    with pytest.raises(ServingError, match=r"no-such-wheel\.whl"):
        prepare(tmp_path / "environment")


def test_a_virtual_environment_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (tmp_path / "work.py").write_text("print()\n")
    with pytest.raises(ServingError, match="holds other files"):
        prepare(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pyvenv.cfg", "work.py"}


def test_one_that_was_not_finished_is_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "environment"
    held: list[bool] = []

    def fail(command: list[str], hint: str) -> None:
        held.append((folder / "lib" / "half").exists())
        (folder / "lib").mkdir()
        (folder / "lib" / "half").touch()
        raise ServingError("interrupted", hint)

    monkeypatch.setattr(module, "_run", fail)
    for _ in range(2):
        with pytest.raises(ServingError, match="interrupted"):
            prepare(folder)
    assert held == [False, False]


@pytest.mark.slow
def test_it_is_made_once(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_run", lambda command, hint: pytest.fail(f"run again: {command}"))
    assert prepare(environment.folder) == environment


@pytest.mark.slow
def test_a_missing_libpython_is_named_with_the_command(environment: Environment, tmp_path: Path) -> None:
    stub = tmp_path / "python" / "triton_python_backend_stub"
    stub.parent.mkdir()
    shutil.copy(environment.backends / "python" / stub.name, stub)
    wanted = f"libpython{VERSION}.so".encode()
    stub.write_bytes(stub.read_bytes().replace(wanted, b"libpython9.99.so"[: len(wanted)]))
    with pytest.raises(MissingDependencyError, match=f"apt-get install libpython{VERSION}"):
        module._check_libraries(replace(environment, backends=tmp_path))
