"""What a Dockerfile's build context holds, by its .dockerignore, and one hash of it: unchanged means nothing
to build."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rule:
    """One line of a .dockerignore."""

    pattern: re.Pattern[str]
    ignore: bool


def parse_rules(text: str) -> list[Rule]:
    """Docker's rules: the last match decides, `!` takes back, `**` spans folders, a folder stands for what
    is in it."""
    rules = []
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        ignore = not line.startswith("!")
        line = line.removeprefix("!").strip().strip("/")
        if line and line != ".":
            rules.append(Rule(re.compile(_expression(line) + r"(/.*)?\Z"), ignore))
    return rules


def is_ignored(path: str, rules: list[Rule]) -> bool:
    """Whether a path (relative, with slashes) stays out of the context."""
    ignored = False
    for rule in rules:
        if rule.pattern.match(path):
            ignored = rule.ignore
    return ignored


def _expression(pattern: str) -> str:
    out, rest = "", pattern
    while rest:
        if rest.startswith("**/"):
            out, rest = out + r"(.*/)?", rest[3:]
        elif rest.startswith("**"):
            out, rest = out + r".*", rest[2:]
        elif rest[0] == "*":
            out, rest = out + r"[^/]*", rest[1:]
        elif rest[0] == "?":
            out, rest = out + r"[^/]", rest[1:]
        else:
            out, rest = out + re.escape(rest[0]), rest[1:]
    return out


def context_files(context: Path) -> list[str]:
    """Every file and link that a build would be sent, sorted."""
    ignore_file = context / ".dockerignore"
    rules = parse_rules(ignore_file.read_text()) if ignore_file.exists() else []
    may_take_back = any(not rule.ignore for rule in rules)
    found = []
    for folder, names, files in os.walk(context):
        base = Path(folder).relative_to(context)
        for name in [*files, *(n for n in names if (Path(folder) / n).is_symlink())]:
            path = (base / name).as_posix()
            if not is_ignored(path, rules):
                found.append(path)
        if not may_take_back:
            names[:] = [name for name in names if not is_ignored((base / name).as_posix(), rules)]
        names[:] = [name for name in names if name not in (".git", ".venv", "__pycache__")]
    return sorted(found)


def context_hash(context: Path, dockerfile: Path, extra: str) -> str:
    """16 hex digits over names, modes and contents, the Dockerfile and `extra`."""
    total = hashlib.sha256(extra.encode())
    total.update(dockerfile.read_bytes())
    for path in context_files(context):
        full = context / path
        if full.is_symlink():
            entry = f"link {path} {full.readlink()}"
        elif full.is_file():
            digest = hashlib.sha256(full.read_bytes()).hexdigest()
            entry = f"file {path} {full.stat().st_mode & 0o111} {digest}"
        else:
            continue
        total.update(f"{entry}\n".encode())
    return total.hexdigest()[:16]
