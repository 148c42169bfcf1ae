"""The script `vae-export`: the verb `export` under its own name."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `vae-export`; returns the exit code."""
    try:
        from parvae_export.commands import export
    except ModuleNotFoundError as error:
        print(f"vae-export needs {error.name}, which is not installed: pip install 'parvae[export]'", file=sys.stderr)
        return 1
    return int(export.main(prog_name="vae-export") or 0)


if __name__ == "__main__":
    sys.exit(main())
