"""`import eao` and the command stay light, every package is installed, and every public name resolves."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import eao

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "av",
    "librosa",
    "lancedb",
    "gensim",
    "numpy",
    "scipy",
    "matplotlib",
)
PARTS = {"eao": "eao", "kernels": "eao.kernels", "export": "eao.export", "serve": "eao.serve", "bench": "eao.bench"}


def modules_after(code: str) -> set[str]:
    code = f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_eao_loads_no_framework() -> None:
    loaded = modules_after("import eao")
    assert loaded.isdisjoint({*HEAVY, "pydantic", "yaml", "typer", "rich"})


def test_config_loads_no_framework() -> None:
    assert modules_after("import eao; eao.load_config").isdisjoint(HEAVY)


def test_command_loads_no_framework_for_its_help() -> None:
    run = "with contextlib.suppress(SystemExit):\n    eao.cli.main()"
    code = f"import contextlib, sys, eao.cli\nsys.argv = ['eao', '--help']\n{run}"
    assert modules_after(code).isdisjoint(HEAVY)


def test_the_model_loads_no_compiler() -> None:
    """torch's would cost every command seconds."""
    assert "torch._dynamo" not in modules_after("import eao.embedder, eao.export.runtime, eao.retrieval.index")


@pytest.mark.parametrize("name", eao.__all__)
def test_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(eao, name)
    assert name == "__version__" or value.__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'emebd'"):
        _ = eao.emebd


def test_dir_lists_public_names_before_they_are_used() -> None:
    assert set(eao.__all__) <= set(dir(eao))


def test_version_is_that_of_the_distribution() -> None:
    assert eao.__version__ == version("eao")


def test_every_package_folder_is_installed() -> None:
    """A folder with an `__init__.py` that pyproject.toml does not list would be missing from the wheel."""
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = set()
    for folder, package in PARTS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inner]))
    assert found | {"eao.configs"} == listed


def test_every_module_lies_in_a_package() -> None:
    """A module in a folder without `__init__.py` would be missing from the wheel."""
    serve = ROOT / "serve"
    data = {serve / "backends", serve / "page", serve / "cpp", serve / "triton" / "models"}
    for folder in PARTS:
        for module in (ROOT / folder).rglob("*.py"):
            if data.isdisjoint(module.parents):
                assert (module.parent / "__init__.py").is_file(), module
