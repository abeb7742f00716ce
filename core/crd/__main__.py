"""`python -m cinderblock.core.crd [--check | --print]`, in the root of a checkout.

Without a flag the CRDs and their pages are written; `--check` only says which are stale and then ends with 1;
`--print` writes all CRDs to stdout as one YAML stream and needs no checkout.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cinderblock.core.crd import files


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="cinderblock.core.crd", description="CRDs and their pages")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--check", action="store_true", help="write nothing; end with 1 when a file is stale")
    choice.add_argument("--print", action="store_true", help="write all CRDs to stdout", dest="print_")
    parser.add_argument("--root", type=Path, default=Path(), help="root of the checkout (default: here)")
    options = parser.parse_args(argv)
    if options.print_:
        sys.stdout.write("---\n".join(files.crd_yaml().values()))
        return 0
    root: Path = options.root
    if not (root / files.LIFECYCLE_FOLDER).is_dir():
        parser.error(f"{root.absolute()} is not the root of a checkout: no {files.LIFECYCLE_FOLDER} there")
    changed = files.stale(root) if options.check else files.write(root)
    for name in changed:
        sys.stdout.write(f"{name}: {'stale, run make generate' if options.check else 'written'}\n")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
