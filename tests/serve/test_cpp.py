"""The C++ library: built and tested by the commands of docs/cpp.md, and against the real Triton Inference Server."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import eao
from eao.serve.triton.environment import Environment

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "serve" / "cpp"
PAGE = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
BUILD, EMBED = re.findall(r"<!-- run -->\n```bash\n(.*?)```", PAGE, re.DOTALL)
APT = re.search(r"<!-- root -->\n```bash\n(.*?)```", PAGE, re.DOTALL)[1].replace("\\\n   ", "").strip()  # type: ignore[index]
PROGRAMS = ("cmake", "ctest", "ninja", "c++", "protoc", "grpc_cpp_plugin")
Done = subprocess.CompletedProcess[str]
HEADERS = ("nlohmann/json.hpp", "grpcpp/grpcpp.h", "google/protobuf/message.h")


def missing() -> list[str]:
    """What the machine lacks of what the library is built with."""
    programs = [name for name in PROGRAMS if shutil.which(name) is None]
    if "c++" in programs:
        return programs
    compiler = ["c++", "-E", "-x", "c++", "-o", os.devnull, "-"]
    without = [
        header
        for header in HEADERS
        if subprocess.run(compiler, input=f"#include <{header}>\n", text=True, capture_output=True).returncode
    ]
    return [*programs, *without]


def run(command: list[str] | str, folder: Path, timeout: float = 900, **variables: str) -> Done:
    """Run a command with this Python first on the path, and give back what it said."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shell = ["bash", "-euo", "pipefail", "-c", command] if isinstance(command, str) else command
    environment = {**os.environ, "PATH": path, "CMAKE_BUILD_PARALLEL_LEVEL": "2", **variables}
    return subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def workspace() -> Path:
    """A folder that stands for the repository, in which `build/cpp` is configured to take no warning and leave no back
    end out. It is kept, so that the next run compiles only what has changed."""
    lacking = missing()
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}; {APT}")
    pytest.importorskip("openvino")
    folder = ROOT / "build" / "cpp-tests"
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "serve"
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT / "serve")
    options = "-DEAO_WERROR=ON -DEAO_WITH_OPENVINO=ON -DEAO_WITH_TRITON=ON -DEAO_WITH_TENSORRT=AUTO"
    first = BUILD.split("cmake --build")[0].strip() + f" {options}"
    done = run(first, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def built(workspace: Path) -> Path:
    """The workspace after the page's commands: built, tested, installed."""
    done = run(BUILD, workspace, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" not in done.stdout + done.stderr
    return workspace


@pytest.fixture(scope="module")
def cases(built: Path) -> Path:
    """The bundles and expected values that the tests of ctest have written."""
    return built / "build" / "cpp" / "tests" / "cases"


def embed(built: Path, *arguments: str) -> Done:
    return run([str(built / "build" / "installed" / "bin" / "eao-embed"), *arguments], built)


@pytest.mark.slow
def test_every_test_of_the_page_passes(built: Path) -> None:
    log = (built / "build" / "cpp" / "Testing" / "Temporary" / "LastTest.log").read_text(errors="replace")
    listed = run(["ctest", "--test-dir", "build/cpp", "-N"], built).stdout  # which begins the log anew
    names = re.findall(r"Test\s+#\d+: (\S+)", listed)
    cases = ("word2vec", "minilm", "clip")
    wanted = {*(f"{kind}-{case}" for kind in ("tokens", "embeddings") for case in cases), "refusals", "consumer"}
    assert wanted <= set(names)
    assert log.count("Test Passed.") == len(names)


@pytest.mark.slow
def test_the_command_of_the_page_gives_pythons_embeddings(built: Path, cases: Path) -> None:
    done = run(EMBED, built, BUNDLE=str(cases / "minilm" / "bundle"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    model = eao.load(cases / "minilm" / "bundle")
    assert (found["encoder"], found["model"]) == ("text", model.model_hash)
    # 1e-5: float32 by two runtimes, of rows of unit length.
    np.testing.assert_allclose(found["embeddings"], model.embed(text=["a dog barks", "thunder"]), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--text", "a dog"], "nothing to embed\n     usage: eao-embed"),
        (["--bundle", "nowhere", "--text", "a dog"], "nowhere is no bundle: it has no manifest.json\n     make one"),
        (["--bundle", "{bundle}", "--text", "?!"], "the sentence '?!' has no words\n     write at least one"),
        (["--bundle", "{bundle}", "--precision", "int8", "--text", "a"], "has no int8 engine\n     it has onnxrun"),
        (["--bundle", "{bundle}", "--threads", "-1", "--text", "a"], "--threads -1 is no number of threads"),
        (["--bundle", "{bundle}", "--txt", "a"], "there is no option --txt"),
    ],
)
def test_mistakes_end_with_the_next_step(built: Path, cases: Path, arguments: list[str], said: str) -> None:
    done = embed(built, *(a.format(bundle=cases / "word2vec" / "bundle") for a in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"eao-embed: {said}" in done.stderr or said in done.stderr


@pytest.fixture(scope="module", params=["word2vec", "minilm"])
def server(
    request: pytest.FixtureRequest, environment: Environment, cases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str]]:
    """A case, and the address of a server that has its bundle."""
    from eao.serve.triton.repository import write_repository
    from eao.serve.triton.server import running

    case = cases / request.param
    repository = tmp_path_factory.mktemp("triton") / "repository"
    write_repository(case / "bundle", repository)
    with running(repository, environment=environment) as server:
        yield case, f"triton://{server.grpc}"


@pytest.mark.slow
def test_a_server_gives_pythons_embeddings(built: Path, server: tuple[Path, str]) -> None:
    case, address = server
    done = run([str(built / "build" / "cpp" / "tests" / "test_embeddings"), str(case), address], built, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = json.loads((case / "embeddings.json").read_text())
    found = embed(built, "--bundle", address, "--text", expected["sentences"][0])
    assert found.returncode == 0, found.stderr
    np.testing.assert_allclose(json.loads(found.stdout)["embeddings"], expected["embeddings"][:1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_what_is_insisted_on_is_named_if_it_is_missing(workspace: Path, tmp_path: Path) -> None:
    options = ["-DEAO_WITH_OPENVINO=OFF", "-DEAO_WITH_TRITON=OFF", "-DEAO_WITH_TENSORRT=ON"]
    done = run(["cmake", "-S", str(SOURCES), "-B", str(tmp_path), "-G", "Ninja", *options], workspace)
    if done.returncode == 0:
        pytest.skip("TensorRT and CUDA are installed")
    assert "EAO_WITH_TENSORRT is ON, but NvInfer.h, libnvinfer or the CUDA toolkit" in " ".join(done.stderr.split())
    assert "OPENVINO is left out" in done.stdout


@pytest.mark.slow
def test_a_build_without_back_ends_says_what_it_lacks(workspace: Path, cases: Path, tmp_path: Path) -> None:
    options = [*(f"-DEAO_WITH_{name}=OFF" for name in ("OPENVINO", "TRITON", "TENSORRT")), "-DEAO_BUILD_TESTS=OFF"]
    configured = run(
        ["cmake", "-S", str(SOURCES), "-B", str(tmp_path), "-G", "Ninja", "-DEAO_WERROR=ON", *options], workspace
    )
    assert "no back end is built" in configured.stderr
    made = run(["cmake", "--build", str(tmp_path)], workspace)
    assert made.returncode == 0, made.stdout
    for source, said in [
        (str(cases / "word2vec" / "bundle"), "runs here\n     onnxruntime fp32: not in this build"),
        (
            "triton://127.0.0.1:8001",
            "cannot reach triton://127.0.0.1:8001\n     configure it with -DEAO_WITH_TRITON",
        ),
    ]:
        done = run([str(tmp_path / "eao-embed"), "--bundle", source, "--text", "a dog"], workspace)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SOURCES / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_tables_are_those_of_python() -> None:
    import tokenizers

    table = (SOURCES / "src" / "unicode_tables.inc").read_text(encoding="ascii")
    versions = f"Unicode {unicodedata.unidata_version} of Python, tokenizers {tokenizers.__version__}:"
    if versions not in table:
        pytest.skip(f"made with other versions: {table.splitlines()[0]}")
    assert load_tool("make_unicode_tables").render() == table


def test_the_protocol_is_part_of_tritons(tmp_path: Path) -> None:
    if shutil.which("protoc") is None:
        pytest.skip(f"not installed: protoc; {APT}")
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from tritonclient.grpc import model_config_pb2, service_pb2

    out = tmp_path / "descriptors"
    command = ["protoc", f"--proto_path={SOURCES / 'proto'}", f"--descriptor_set_out={out}", "inference.proto"]
    subprocess.run(command, check=True)
    ours = FileDescriptorSet.FromString(out.read_bytes()).file[0]
    theirs = {}
    for module in (service_pb2, model_config_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            theirs[message.name] = message
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in ours.service[0].method:
        twin = service.methods_by_name[method.name]
        names = (f".{twin.input_type.full_name}", f".{twin.output_type.full_name}")
        assert (method.input_type, method.output_type) == names
    fields = 0
    for message in ours.message_type:
        for part, twin in [
            (message, theirs[message.name]),
            *((nested, theirs[message.name].nested_types_by_name[nested.name]) for nested in message.nested_type),
        ]:
            for field in part.field:
                other = twin.fields_by_name[field.name]
                assert (field.number, field.type) == (other.number, other.type), field.name
                fields += 1
    assert fields > 30
