"""A process that indexes features, or removes them, in children of its own, which die in the middle of it.

Called as `killed.py MODEL FEATURES`. Reads lines of JSON: a task ("add" or "remove"), an index, and after how many
seconds of work the child kills itself with SIGKILL, or null. Answers each with the exit status of the child and the
seconds that it worked, null if it was killed. A child finds torch and the model loaded.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from eao.api import load
from eao.embedder import Embedder


def work(task: str, index_path: str, seconds: float | None, embedder: Embedder, features: Path) -> float:
    """Do the task; gives the seconds that it took once the index was open."""
    from eao.retrieval.index import Index

    index = Index(index_path, embedder)
    if seconds is not None:
        # A timer in here meets moments that are too short for another process to meet.
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    begin = time.monotonic()
    if task == "add":
        index.add_features(features)
    else:
        index.remove(json.loads((features / "remove.json").read_text()))
    return time.monotonic() - begin


def main() -> None:
    model, features = sys.argv[1:]
    embedder = load(model, device="cpu")
    print("ready", flush=True)
    for line in sys.stdin:
        task, index_path, seconds = json.loads(line)
        answer, write = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                took = work(task, index_path, seconds, embedder, Path(features))
                os.write(write, str(took).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(answer) as pipe:
            took = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, float(took) if took else None]), flush=True)


if __name__ == "__main__":
    main()
