"""Commands that try things: the demo, the machine, the kernels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from eao.cli.common import DryRun, Json, Overrides, app, say
from eao.console import out, print_json, print_table, progress
from eao.errors import EaoError

kernels = typer.Typer(help="The kernels for GPUs, judged without one.", no_args_is_help=True)


@app.command()
def demo(
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Everything goes here. Default runs/demo or runs/demo-quick.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Fewer objects and epochs: a check that everything works, in under 3 minutes.")
    ] = False,
    stamps: Annotated[Path | None, typer.Option(help="A tuxpaint stamps folder, where apt is not at hand.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """The whole path on a real data set: render, extract, train, evaluate, export, prove parity, benchmark, search."""
    from eao.demo.run import run_demo

    folder = folder or Path("runs/demo-quick" if quick else "runs/demo")
    summary = run_demo(folder, quick=quick, stamps=stamps, overrides=overrides or [], dry_run=dry_run, quiet=as_json)
    if as_json:
        print_json(summary)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Which engines, codecs and devices are usable here and, for each that is not, why and what to install."""
    from eao.doctor import diagnose, render, to_json

    checks = diagnose()
    if as_json:
        print_json(to_json(checks))
    else:
        out.print(render(checks))


@kernels.command()
def check(
    target: Annotated[list[str] | None, typer.Option("--target", "-t", help="sm_80, sm_90, ...; default all.")] = None,
    kernel: Annotated[list[str] | None, typer.Option("--kernel", "-k", help="A kernel's name; default all.")] = None,
    details: Annotated[bool, typer.Option(help="A line for each variant and type instead of each kernel.")] = False,
    write: Annotated[
        bool, typer.Option(help="After a change of a kernel: compile all candidates, store which of them fit.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compile the kernels for every GPU they are meant for, on any machine, and say what each needs.

    Exit code 1 if one spills registers, needs more shared memory than there is, or misses the tensor cores.
    """
    from eao.kernels import aot

    if write and (target or kernel):
        raise EaoError("--write stores all kernels and targets", "leave out --target and --kernel")
    with progress("compiling", not as_json) as callback:
        if write:
            builds = aot.store(cache=aot.default_cache(), progress=callback)
        else:
            builds = aot.check(target or [], kernel or [], cache=aot.default_cache(), progress=callback)
    if as_json:
        print_json([asdict(build) for build in builds])
    else:
        print_table("kernels", aot.details(builds) if details else aot.summary(builds))
    faulty = [build for build in builds if build.fault]
    for build in faulty:
        say(f"[x] {build.kernel} {build.variant} {build.dtype} {build.target}: {build.fault}")
    if faulty:
        raise typer.Exit(1)


app.add_typer(kernels, name="kernels")
