"""`python -m vecbank info` and `python -m vecbank demo`."""

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vecbank", description="Similarity to a fixed bank of vectors.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("info", help="versions, build flags, instruction sets, CUDA", add_help=False)
    commands.add_parser("demo", help="the three families on real data; writes demo_report/", add_help=False)
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Only the command is read here; each command parses the rest, so that its --help is its own.
    command = parser.parse_args(arguments[:1]).command
    if command == "demo":
        # Imported late: the demo needs scikit-learn and matplotlib, which the package itself does not.
        try:
            from vecbank import demo
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.startswith("vecbank"):
                raise
            print(f"vecbank: the demo needs {missing.name}: pip install 'vecbank[demo]'", file=sys.stderr)
            return 1
        return demo.main(arguments[1:])
    from vecbank import info

    return info.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
