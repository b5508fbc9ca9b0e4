"""Compiling kernels without a GPU, and finding what is wrong with those that have something wrong.

Compilers and Triton's interpreter exclude each other in one process, and the tests' own interprets: whatever compiles
does so in a process of its own.
"""

import json
import os
import subprocess
import sys

import pytest

from eao.errors import EaoError, MissingDependencyError
from eao.kernels import aot
from eao.kernels.aot import Build

pytest.importorskip("triton")

KERNELS = """
import triton
import triton.language as tl
from eao.kernels.registry import Kernel, Launch

@triton.jit
def add(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i) + 1)

@triton.jit
def multiply(x, y, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    tl.store(y + i * BLOCK + j, tl.dot(tl.load(x + i * BLOCK + j), tl.load(x + j * BLOCK + i)))

@triton.jit
def broken(x, y, BLOCK: tl.constexpr):
    tl.store(y, tl.load(x + tl.arange(0, BLOCK)) + tl.zeros((2 * BLOCK,), tl.float32))

def kernel(function, launches, tensor_cores=True):
    return Kernel(
        function.fn.__name__, function, {"x": "*T:16", "y": "*fp32:16"}, {"any": {}}, {"any": launches},
        dtypes=("fp16",), tensor_cores=tensor_cores,
    )

KERNELS = (
    kernel(add, (Launch({"BLOCK": 64}, 1),), tensor_cores=False),
    kernel(multiply, (Launch({"BLOCK": 128}, 2), Launch({"BLOCK": 32}, 4))),
)
FAULTY = {
    "plain": (kernel(add, (Launch({"BLOCK": 64}, 1),), tensor_cores=False), 0),
    "spill": (KERNELS[1], 0),
    "memory": (kernel(multiply, (Launch({"BLOCK": 256}, 16),)), 0),
    "fits": (KERNELS[1], 1),
    "no tensor cores": (kernel(add, (Launch({"BLOCK": 64}, 1),)), 0),
    "broken": (kernel(broken, (Launch({"BLOCK": 64}, 1),)), 0),
}
"""


@pytest.fixture(scope="module")
def compiling(tmp_path_factory):
    """A function that runs Python where Triton compiles, with the kernels above, and gives what it printed as JSON."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "some_kernels.py").write_text(KERNELS)
    start = (
        "import json, sys\nfrom dataclasses import asdict\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(folder)!r})\nimport some_kernels\n"
        "from eao.errors import EaoError\nfrom eao.kernels import aot, registry\nregistry.MODULES = ('some_kernels',)\n"
        "aot.TARGETS = {t: aot.TARGETS[t] for t in ('sm_80', 'sm_90')}\n"
    )

    def run(code):
        return json.loads(in_a_process("-c", start + code).stdout)

    return run


def in_a_process(*arguments):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def faults(compiling):
    return compiling(
        "print(json.dumps({name: asdict(aot.compile_kernel(k, 'any', 'fp16', 'sm_80', k.launches['any'][i]))\n"
        "                  for name, (k, i) in some_kernels.FAULTY.items()}))"
    )


def test_a_kernel_that_fits_has_no_fault(faults):
    assert faults["plain"]["fault"] == faults["fits"]["fault"] == ""
    assert faults["fits"]["tensor_cores"] == "mma.sync" and faults["plain"]["tensor_cores"] == ""
    assert 0 < faults["fits"]["registers"] < 255 and 0 < faults["fits"]["shared"] <= 32 * 32 * 2 * 2 + 32 * 32 * 4


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("spill", "spills "),
        ("memory", "over 166912 bytes"),
        ("no tensor cores", "no tensor core instruction"),
        ("broken", "does not compile: "),
    ],
)
def test_faults_are_found(faults, name, says):
    assert says in faults[name]["fault"]


def test_only_candidates_that_fit_are_stored_and_checked(compiling, tmp_path):
    configs, cache = tmp_path / "configs.json", tmp_path / "cache"
    result = compiling(
        f"configs, cache = Path({str(configs)!r}), Path({str(cache)!r})\n"
        "stored = aot.store(configs, cache)\n"
        "aot.compile_kernel = None  # from here on all is in the cache\n"
        "checked = aot.check(configs=configs, cache=cache)\n"
        "some = aot.check(['sm_90'], ['multiply'], configs, cache)\n"
        "print(json.dumps([[asdict(b) for b in builds] for builds in (stored, checked, some)]))"
    )
    stored, checked, some = result
    launches = json.loads(configs.read_text())["launches"]
    assert launches["multiply"]["any"]["fp16"] == {"sm_80": [1], "sm_90": [1]}
    assert stored == checked and not any(build["fault"] for build in checked)
    assert [(build["kernel"], build["target"]) for build in some] == [("multiply", "sm_90")]


def test_nothing_is_stored_if_a_kernel_fits_nowhere(compiling, tmp_path):
    result = compiling(
        "some_kernels.KERNELS = (some_kernels.FAULTY['no tensor cores'][0],)\n"
        f"builds = aot.store(Path({str(tmp_path / 'configs.json')!r}))\n"
        "print(json.dumps([b.fault for b in builds]))"
    )
    assert result == ["no tensor core instruction"] * 2
    assert not (tmp_path / "configs.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("configs=stale", "older than the kernel add"),
        ("['sm_70'], configs=stale", "no target sm_70"),
        ("[], ['sub'], stale", "no kernel sub\n     choose from add, multiply"),
    ],
)
def test_what_cannot_be_checked_is_refused(compiling, tmp_path, arguments, says):
    (tmp_path / "configs.json").write_text('{"sources": {"add": "0"}, "launches": {}}')
    message = compiling(
        f"stale = Path({str(tmp_path / 'configs.json')!r})\n"
        f"try: aot.check({arguments})\nexcept EaoError as error: print(json.dumps(str(error)))"
    )
    assert says in message


def test_one_kernel_on_one_target_from_the_command_line():
    done = in_a_process("-m", "eao", "kernels", "check", "-t", "sm_90", "-k", "attention_forward", "--json")
    builds = json.loads(done.stdout)
    assert [(b["variant"], b["dtype"]) for b in builds] == [
        (variant, dtype) for variant in ("c16", "c32", "c64", "c128") for dtype in ("fp16", "bf16", "fp32")
    ]
    assert all(b["fault"] == "" and b["spills"] == 0 and b["tensor_cores"] for b in builds)


@pytest.mark.slow
def test_every_kernel_on_every_target():
    builds = json.loads(in_a_process("-m", "eao", "kernels", "check", "--json").stdout)
    assert {b["target"] for b in builds} == set(aot.TARGETS)
    assert all(b["fault"] == "" and b["spills"] == 0 and b["stack"] == 0 for b in builds)


def test_the_interpreter_leaves_nothing_to_compile(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(EaoError, match="unset TRITON_INTERPRET"):
        aot.check()


def test_a_missing_triton_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingDependencyError, match="compiling kernels needs the package triton"):
        aot.check()


def test_machine_code_is_read():
    code = "\n".join(
        (
            "        /*0010*/                   STL.64 [R1+0x8], R2 ;",
            "        /*0020*/              @!P0 LDL R4, [R1] ;",
            "        /*0030*/                   LDG.E R2, [R4.64] ;",
        )
    )
    assert aot.count_spills(code) == 2
    assert aot.read_usage(" Function f:\n  REG:40 STACK:8 SHARED:0 LOCAL:0") == {"registers": 40, "stack": 8}
    with pytest.raises(RuntimeError, match="no resource usage"):
        aot.read_usage("")


def test_amd_assembly_is_read():
    lines = (".vgpr_count:     88", ".vgpr_spill_count: 2", ".sgpr_spill_count: 1", ".private_segment_fixed_size: 16")
    assert aot.read_amd("\n".join(f"    {line}" for line in lines)) == {"registers": 88, "stack": 16, "spills": 3}


def test_tables():
    builds = [
        Build("f", "c16", "fp16", "sm_80", {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4}, 40, 0, 0, 2048, "mma.sync"),
        Build("f", "c32", "fp16", "sm_80", {"BLOCK_M": 16, "num_warps": 8}, 90, 8, 3, 1024, "", "spills 3"),
        Build("f", "c16", "fp16", "sm_90", {"BLOCK_M": 64, "num_warps": 4}, 30),
    ]
    first, second = aot.summary(builds)
    assert list(first.values()) == ["f", "sm_80", "1 of 2", 90, 3, 2.0, "mma.sync"]
    assert list(second.values()) == ["f", "sm_90", "1 of 1", 30, 0, 0.0, "-"]
    assert list(aot.details(builds)[0].values()) == ["f", "c16", "fp16", "sm_80", "64 x 32", 4, 40, 0, 2.0, "mma.sync"]
