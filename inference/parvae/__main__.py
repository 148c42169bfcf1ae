"""`python -m parvae selftest model.vae` and `python -m parvae info model.vae`: numpy and onnxruntime are enough."""

from __future__ import annotations

import argparse
import sys

from parvae.bundle import read_bundle
from parvae.errors import Error
from parvae.selftest import describe, replay, summarise


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two verbs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m parvae", description=__doc__)
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
