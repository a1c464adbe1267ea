"""`python -m vecbank info`, `python -m vecbank demo` and `python -m vecbank gallery`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vecbank", description="Similarity to a fixed bank of vectors.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="versions, build flags, instruction sets, CUDA", add_help=False)
    commands.add_parser("demo", help="the three families on real data; writes demo_report/", add_help=False)
    commands.add_parser("gallery", help="published systems with their checks; writes gallery_report/", add_help=False)
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Only the command is read here; each command parses the rest, so that its --help is its own.
    command = parser.parse_args(arguments[:1]).command
    # Imported late: the demo and the gallery need scikit-learn and matplotlib, which the package itself does not.
    try:
        module = import_module(f"vecbank.{command}")
    except ModuleNotFoundError as missing:
        if command == "info" or missing.name is None or missing.name.startswith("vecbank"):
            raise
        print(f"vecbank: the {command} needs {missing.name}: pip install 'vecbank[demo]'", file=sys.stderr)
        return 1
    status: int = module.main(arguments[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
