"""OpenVINO in a process that handles signals."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

# The session goes in another thread than it came in, as a garbage collector may have it; then a child ends.
CODE = """
import faulthandler, gc, signal, subprocess, sys, threading
from eao.export.openvino import OpenVINOSession
faulthandler.enable()
signal.signal(signal.SIGCHLD, lambda *_: None)
held = [OpenVINOSession(sys.argv[1], threads=1)]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
gc.collect()
sys.exit(subprocess.run(["true"]).returncode)
"""


def test_a_signal_after_a_session_is_gone_does_not_end_the_process(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "g.onnx")
    assert subprocess.run([sys.executable, "-c", CODE, str(tmp_path / "g.onnx")], check=False).returncode == 0
