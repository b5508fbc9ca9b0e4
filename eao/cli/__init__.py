"""The `eao` command: one thin function per command, no logic.

Exit codes: 0 = done, 1 = a gate failed (parity), 2 = bad input, a missing package, a full disk, or an interruption.
"""

from __future__ import annotations

import errno
import sys

import typer

from eao.cli.common import app, say
from eao.errors import EaoError, ParityError

# Each registers its commands, in the order of the help.
# isort: off
from eao.cli import training  # noqa: F401
from eao.cli import retrieval  # noqa: F401
from eao.cli import search  # noqa: F401
from eao.cli import serving  # noqa: F401
from eao.cli import engines  # noqa: F401
from eao.cli import backbones  # noqa: F401
from eao.cli import checks  # noqa: F401
# isort: on


def main() -> None:
    """Run the command line; errors the user can mend become one message and exit code 2."""
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer's word for Ctrl-C; older versions raise Abort
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except ParityError as error:
        _fail(f"[x] {error}", 1)
    except EaoError as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing is half-written, and the same command continues")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        what = error.filename or "the output"
        _fail(f"cannot write {what}: {error.strerror}\n     free some space, or choose another --out")
    except Exception as error:
        if not hasattr(error, "exit_code") or not hasattr(error, "show"):
            raise
        error.show()
        sys.exit(2)


def _fail(message: str, code: int = 2) -> None:
    say(f"eao: {message}")
    sys.exit(code)
