"""The command `vae`, also `python -m parvae`.

Where click is not installed it offers the verbs that a bare device needs, `selftest MODEL`, `info MODEL` and `bench
MODEL`: numpy and onnxruntime are enough for them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from parvae.bundle import read_bundle
from parvae.edge.bench import machine, measure
from parvae.errors import Error
from parvae.selftest import describe, replay, summarise

BARE_VERBS = ("selftest", "info", "bench")


def main() -> int:
    """Run `vae`, or what of it works without click; returns the exit code."""
    name = Path(sys.argv[0]).name
    program = "python -m parvae" if name == "__main__.py" else name
    try:
        from parvae.cli import vae
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        return bare(program, sys.argv[1:])
    return int(vae(prog_name=program) or 0)


def bare(program: str, arguments: list[str]) -> int:
    """Run one of BARE_VERBS with the standard library alone."""
    if len(arguments) != 2 or arguments[0] not in BARE_VERBS:
        print(f"usage: {program} {{{','.join(BARE_VERBS)}}} MODEL", file=sys.stderr)
        print("The other verbs need click and pyarrow: pip install 'parvae[parquet]'", file=sys.stderr)
        return 1 if arguments and arguments[0] not in BARE_VERBS else 2
    verb, model = arguments
    try:
        bundle = read_bundle(model)
        if verb == "info":
            result, passed = describe(bundle), True
        elif verb == "bench":
            result, passed = {**machine(), **{speed.verb: str(speed) for speed in measure(bundle)}}, True
        else:
            checks = replay(bundle)
            result, passed = summarise(checks), all(check.passed for check in checks)
    except Error as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for name, value in result.items():
        print(f"{name}: {value}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
