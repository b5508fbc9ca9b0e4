"""A process that indexes features, or removes them, in children of its own, which a test kills.

Called as `killed.py MODEL FEATURES`. Reads lines `add INDEX` and `remove INDEX`, answers each with the number of the
child, with `begin` when that has opened the index, and a line `wait` after it with its exit status. A child finds torch
and the model loaded, so that a test can kill it in the middle of its work.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from eao.api import load


def work(task: str, index_path: str, embedder: object, features: str) -> None:
    from eao.retrieval.index import Index

    index = Index(index_path, embedder)  # type: ignore[arg-type]
    print("begin", flush=True)
    if task == "add":
        index.add_features(features)
    else:
        index.remove(json.loads((Path(features) / "remove.json").read_text()))


def main() -> None:
    model, features = sys.argv[1:]
    embedder = load(model, device="cpu")
    print("ready", flush=True)
    for line in sys.stdin:
        task, index_path = line.split(maxsplit=1)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(task, index_path.strip(), embedder, features)
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)
        sys.stdin.readline()  # until then its number is its own, even if it has ended
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
