"""Building an engine in a process of its own, so that whatever happens there comes back as one error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pydantic

from eao import probes
from eao.errors import ExportError
from eao.export.tensorrt.api import require_package
from eao.export.tensorrt.request import BuildFacts, BuildRequest, BuiltEngine, Failure, Job
from eao.files import sha256

WORKER = "eao.export.tensorrt.worker"
TIMEOUT = 2 * 3600.0
"""Seconds. TensorRT times kernels for minutes; what takes hours hangs."""
_LOG_LINES = 5


def build(
    graph: str | Path,
    out: str | Path,
    request: BuildRequest,
    timing_cache: str | Path | None = None,
    timeout: float = TIMEOUT,
    log: str | Path | None = None,
) -> BuiltEngine:
    """Compile an ONNX graph into an engine, in a subprocess.

    Args:
        graph: the .onnx file, in any precision; weights beside it are found.
        out: the engine. It appears only when it is whole.
        request: flavour, profiles (check them with `check_profiles` first), targets.
        timing_cache: a file that holds measured kernel times from build to build. TensorRT-RTX measures none.
        timeout: seconds after which the build is given up.
        log: what TensorRT prints. By default it is kept only of a build that failed, as `<out>.log`.

    Raises:
        ExportError: the graph does not parse, the build failed, crashed, ran out of memory or time, or the machine has
            no GPU for TensorRT.
        MissingDependencyError: the package is not installed.

    Example:
        >>> request = BuildRequest(flavour="tensorrt-rtx", profiles=profiles)  # doctest: +SKIP
        >>> build("text.onnx", "text.engine", request).facts.seconds  # doctest: +SKIP
        4.1
    """
    graph, out = Path(graph), Path(out)
    request.check()
    if not graph.is_file():
        raise ExportError(f"{graph} does not exist", "export the encoder again")
    require_gpu(request)
    require_package(request.flavour)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = Path(log) if log is not None else out.with_name(f"{out.name}.log")
    kept.parent.mkdir(parents=True, exist_ok=True)
    cache = Path(timing_cache).absolute() if timing_cache is not None else None
    job = Job(request=request, graph=graph.absolute(), out=out.absolute(), timing_cache=cache)
    facts = _run_worker(job, timeout, kept)
    if log is None:
        kept.unlink()
    return BuiltEngine(path=out, size=out.stat().st_size, sha256=sha256(out), request=request, facts=facts)


def require_gpu(request: BuildRequest) -> None:
    """Refuse a build that needs a GPU where there is none, and say what works instead.

    Raises:
        ExportError: for TensorRT on a machine without an NVIDIA device.
    """
    if request.flavour == "tensorrt" and not probes.has_nvidia_device():
        raise ExportError(
            "TensorRT builds engines only on a machine with an NVIDIA GPU, and this one has none",
            "--engine trt-rtx builds here for GeForce and RTX GPUs; --engine trt --defer makes a bundle that builds "
            "its engines when it is first used on the target",
        )


def _run_worker(job: Job, timeout: float, log: Path) -> BuildFacts:
    with tempfile.TemporaryDirectory(prefix="eao-build-") as scratch:
        job_file, result_file = Path(scratch) / "job.json", Path(scratch) / "result.json"
        job_file.write_text(job.model_dump_json(), encoding="utf-8")
        # -u: a crash must not swallow the log. -P: a folder called tensorrt in the working folder is not the package.
        command = [sys.executable, "-P", "-u", "-m", WORKER, str(job_file), str(result_file)]
        with log.open("wb") as output:
            # A session of its own, so that the worker and whatever it starts can be ended together.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(timeout)
            except BaseException as reason:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(reason, subprocess.TimeoutExpired):
                    hint = f"allow more time, or smaller profiles; what it did is in {log}"
                    message = f"building {job.out} from {job.graph} took longer than {timeout:g} s and was stopped"
                    raise ExportError(message, hint) from None
                raise
        result = result_file.read_text(encoding="utf-8") if result_file.is_file() else ""
    return _read_result(job, code, result, log)


def _read_result(job: Job, code: int, result: str, log: Path) -> BuildFacts:
    """The facts of a worker that ended well; an error for any other end.

    Raises:
        ExportError: with the worker's reason, or how it died.
    """
    try:
        if code == 0:
            return BuildFacts.model_validate_json(result)
        failure = Failure.model_validate_json(result)
    except pydantic.ValidationError:  # it died before it could say why
        raise _death(job, code, log) from None
    raise ExportError(failure.message, failure.hint or f"the whole log is in {log}")


def _death(job: Job, code: int, log: Path) -> ExportError:
    if code == -signal.SIGKILL:
        return ExportError(
            f"building {job.out} from {job.graph} was killed, most likely because memory ran out",
            f"lower the profiles' maxima, or build on a machine with more memory; the log is in {log}",
        )
    reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = f"; its last words: {' | '.join(lines[-_LOG_LINES:])[:600]}" if lines else ""
    return ExportError(
        f"{job.request.flavour} crashed ({reason}) while building {job.out} from {job.graph}{said}",
        f"the whole log is in {log}; try smaller profiles, or another version of the package",
    )
