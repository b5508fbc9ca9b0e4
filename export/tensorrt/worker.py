"""The process in which engines are compiled: reads a job, writes what came of it. Started by `builder.build` only."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from eao.errors import EaoError
from eao.export.tensorrt.api import load_tensorrt
from eao.export.tensorrt.compile import compile_engine
from eao.export.tensorrt.request import Failure, Job
from eao.files import write_text


def main(job_file: str, result_file: str) -> int:
    """Build, and leave `BuildFacts` or a `Failure` as JSON in `result_file`.

    Returns:
        The exit code: 0 built, 2 an error of the user's to mend. A bug leaves a traceback and 1.
    """
    job = Job.model_validate_json(Path(job_file).read_text(encoding="utf-8"))
    try:
        facts = compile_engine(load_tensorrt(job.request.flavour), job)
    except EaoError as error:
        traceback.print_exc()
        write_text(result_file, Failure(message=error.message, hint=error.hint).model_dump_json())
        return 2
    write_text(result_file, facts.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
