"""`python -m parvae`: the command `vae`; where click is not installed, the two verbs that a bare device needs.

Those are `selftest model.vae` and `info model.vae`; numpy and onnxruntime are enough for them.
"""

from __future__ import annotations

import argparse
import sys

from parvae.bundle import read_bundle
from parvae.errors import Error
from parvae.selftest import describe, replay, summarise


def main() -> int:
    """Run `vae`, or what of it works without click; returns the exit code."""
    try:
        from parvae.cli import vae
    except ModuleNotFoundError:
        return bare(sys.argv[1:])
    return int(vae(prog_name="python -m parvae") or 0)


def bare(arguments: list[str]) -> int:
    """Run `selftest` or `info` with the standard library alone."""
    parser = argparse.ArgumentParser(
        prog="python -m parvae", epilog="The other verbs need click and pyarrow: pip install 'parvae[parquet]'"
    )
    parser.add_argument("verb", choices=("selftest", "info"))
    parser.add_argument("model")
    options = parser.parse_args(arguments)
    try:
        bundle = read_bundle(options.model)
        if options.verb == "info":
            result, passed = describe(bundle), True
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
