"""Every name that the package uses of TensorRT exists in each version in which the line that uses it is reached."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from eao.errors import ExportError, MissingDependencyError
from eao.export.tensorrt import api

Names = dict[str, list[str]]
LoadNames = Callable[[str], Names]
VERSIONS = {"10.13": False, "11.4": False, "rtx-1.7": True}  # -> whether it is TensorRT-RTX
SOURCES = sorted(Path(api.__file__).parent.glob("*.py"))
ENUM_FIELDS = {"name", "value"}  # of every member of an enumeration; the lists hold the members


class Checker:
    """Walks a source as one version of TensorRT would run it.

    `trt` is the package; a variable annotated `tensorrt.X` is an X. Branches on `is_rtx` that this version never takes
    are left out. A name of a TensorRT class that is used on anything whose class is not known is a fault as well: it
    would be a use that nobody checks.
    """

    def __init__(self, names: Names, is_rtx: bool) -> None:
        self.names = names
        self.is_rtx = is_rtx
        self.used: set[tuple[str, str]] = set()
        self.faults: list[str] = []
        # Names that hardly anything else has.
        self.telling = {name for members in names.values() for name in members if "_" in name and name.islower()}

    def source(self, text: str) -> Checker:
        self.block(ast.parse(text).body, {})
        return self

    def block(self, statements: list[ast.stmt], known: dict[str, str]) -> bool:
        """Visit statements; whether what follows them is never reached."""
        return any(self.statement(statement, known) for statement in statements)

    def statement(self, node: ast.stmt, known: dict[str, str]) -> bool:
        if isinstance(node, ast.FunctionDef):
            inner = dict(known)
            for arg in [*node.args.args, *node.args.kwonlyargs]:
                self.annotate(inner, arg.arg, arg.annotation)
            self.block(node.body, inner)
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                self.expression(base, known)
            self.block(node.body, known)
        elif isinstance(node, ast.If):
            live = self.truth(node.test)
            self.expression(node.test, known)
            ended = self.block(node.body, known) if live is not False else True
            otherwise = self.block(node.orelse, known) if live is not True else True
            return ended and otherwise and bool(node.orelse or live is True)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.expression(node.value, known)
            if isinstance(node.target, ast.Name):
                self.annotate(known, node.target.id, node.annotation)
        elif isinstance(node, ast.Assign):
            self.expression(node.value, known)
            if ast.unparse(node.value).endswith(("api.module",)) and isinstance(node.targets[0], ast.Name):
                known[node.targets[0].id] = "module"
            else:
                for target in node.targets:
                    self.expression(target, known)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    self.statement(child, known)
                elif isinstance(child, ast.ExceptHandler):
                    self.block(child.body, known)
                else:
                    self.expression(child, known)
            return isinstance(node, ast.Return | ast.Raise | ast.Continue)
        return False

    def annotate(self, known: dict[str, str], name: str, annotation: ast.expr | None) -> None:
        text = ast.unparse(annotation) if annotation is not None else ""
        if text.startswith("tensorrt."):
            known[name] = text.removeprefix("tensorrt.")
            if known[name] not in self.names:
                self.faults.append(f"no class {known[name]}")

    def expression(self, node: ast.AST, known: dict[str, str]) -> None:
        for child in ast.iter_child_nodes(node):
            self.expression(child, known)
        if not isinstance(node, ast.Attribute) or node.attr.startswith("__"):
            return
        owner = self.owner(node.value, known)
        if owner == "module":
            if node.attr not in self.names:
                self.faults.append(f"trt.{node.attr}, line {node.lineno}")
            self.used.add(("trt", node.attr))
        elif owner is not None:
            if node.attr not in self.names.get(owner, []) and node.attr not in ENUM_FIELDS:
                self.faults.append(f"{owner}.{node.attr}, line {node.lineno}")
            self.used.add((owner, node.attr))
        elif node.attr in self.telling:
            self.faults.append(f"{ast.unparse(node)}, line {node.lineno}: of what class?")

    def owner(self, node: ast.expr, known: dict[str, str]) -> str | None:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and known.get(node.value.id) == "module"
        ):
            return node.attr
        return None

    def truth(self, test: ast.expr) -> bool | None:
        """The value of a condition where `is_rtx` alone decides it."""
        if isinstance(test, ast.Attribute) and test.attr == "is_rtx":
            return self.is_rtx
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            value = self.truth(test.operand)
            return None if value is None else not value
        if isinstance(test, ast.BoolOp):
            values = [self.truth(v) for v in test.values]
            decisive = isinstance(test.op, ast.Or)
            if decisive in values:
                return decisive
            return None if None in values else not decisive
        return None


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_where_it_is_used(version: str, trt_names: LoadNames) -> None:
    checker = Checker(trt_names(version), VERSIONS[version])
    for source in SOURCES:
        checker.source(source.read_text(encoding="utf-8"))
    assert checker.faults == []
    assert len(checker.used) > 50  # the walk found the uses


def test_the_versions_differ_in_names_that_the_package_uses(trt_names: LoadNames) -> None:
    used = {}
    for version, is_rtx in VERSIONS.items():
        checker = Checker(trt_names(version), is_rtx)
        for source in SOURCES:
            checker.source(source.read_text(encoding="utf-8"))
        used[version] = checker.used
    assert used["10.13"] == used["11.4"]
    assert ("IBuilderConfig", "set_compute_capability") in used["rtx-1.7"] - used["10.13"]
    assert ("IExecutionContext", "set_device_memory") in used["10.13"] - used["rtx-1.7"]


@pytest.mark.parametrize(
    ("code", "version", "fault"),
    [
        ("def f(b: tensorrt.Builder): b.platform_has_fast_fp16", "10.13", None),
        ("def f(b: tensorrt.Builder): b.platform_has_fast_fp16", "11.4", "Builder.platform_has_fast_fp16"),
        ("def f(api):\n trt = api.module\n trt.BuilderFlag.FP16", "10.13", None),
        ("def f(api):\n trt = api.module\n trt.BuilderFlag.FP16", "11.4", "BuilderFlag.FP16"),
        ("def f(api):\n trt = api.module\n trt.ComputeCapability", "10.13", "trt.ComputeCapability"),
        ("def f(api):\n trt = api.module\n if api.is_rtx:\n  trt.ComputeCapability", "10.13", None),
        ("def f(api):\n trt = api.module\n if not api.is_rtx:\n  return\n trt.ComputeCapability", "10.13", None),
        ("def f(api):\n trt = api.module\n if not api.is_rtx:\n  pass\n trt.ComputeCapability", "10.13", "trt.Compute"),
        ("def f(c: tensorrt.IExecutionContext):\n x = c.engine\n x.num_io_tensors", "10.13", "of what class"),
        ("def f(c: tensorrt.IRuntimeCache): pass", "11.4", "no class IRuntimeCache"),
    ],
)
def test_the_check_itself_finds_faults(code: str, version: str, fault: str | None, trt_names: LoadNames) -> None:
    faults = Checker(trt_names(version), VERSIONS[version]).source(code).faults
    assert (not faults) if fault is None else (len(faults) == 1 and fault in faults[0])


def test_targets_are_names_of_the_real_enumeration(trt_names: LoadNames) -> None:
    real = set(trt_names("rtx-1.7")["ComputeCapability"]) - {"CURRENT", "NONE"}
    assert set(api.COMPUTE_CAPABILITIES.values()) == real
    assert set(api.TARGETS) <= set(api.COMPUTE_CAPABILITIES)


def test_the_installed_package_is_loaded_with_its_version() -> None:
    pytest.importorskip("tensorrt_rtx")
    loaded = api.load_tensorrt("tensorrt-rtx")
    assert loaded.is_rtx and loaded.version == loaded.module.__version__


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(api.sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependencyError, match=r"tensorrt.*\n.*'\.\[trt\]"):
        api.load_tensorrt("tensorrt")


def test_a_package_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    old = types.ModuleType("tensorrt")
    old.__version__ = "8.6.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(api.sys.modules, "tensorrt", old)
    with pytest.raises(ExportError, match=r"8\.6\.1 is too old"):
        api.load_tensorrt("tensorrt")


def test_a_package_that_does_not_import_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(api.sys.modules, "tensorrt", raising=False)
    with pytest.raises(ExportError, match=r"libnvinfer\.so\.10"):
        api.load_tensorrt("tensorrt")
