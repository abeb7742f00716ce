"""kubectl and helm of the local cluster, with deadlines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.shell import ToolError, run


@dataclass(frozen=True)
class Cluster:
    """How to reach the local cluster: the binaries are those of the cache, pinned."""

    kubeconfig: Path
    kubectl_binary: Path
    helm_binary: Path

    def kubectl(self, *argv: str, timeout: float = 60.0, stdin: str | None = None, check: bool = True) -> str:
        return run(
            [self.kubectl_binary, "--kubeconfig", self.kubeconfig, *argv],
            timeout=timeout,
            stdin=stdin,
            check=check,
        )

    def helm(self, *argv: str, timeout: float = 600.0) -> str:
        return run([self.helm_binary, "--kubeconfig", self.kubeconfig, *argv], timeout=timeout)

    def get(self, kind: str, name: str = "", *, namespace: str | None = None) -> dict[str, Any]:
        """One object, or the list; {} when it is not there."""
        argv = ["get", kind, *([name] if name else []), "-o", "json", "--ignore-not-found"]
        if namespace:
            argv += ["-n", namespace]
        text = self.kubectl(*argv)
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def apply(self, manifest: Path) -> None:
        self.kubectl("apply", "-f", str(manifest))

    def exec_shell(self, pod: str, script: str, timeout: float = 60.0) -> str:
        return self.kubectl("exec", pod, "--", "sh", "-c", script, timeout=timeout).strip()

    def wait(
        self, what: str, check: Callable[[], bool], *, timeout: float, on_fail: Callable[[], str]
    ) -> float:
        """Seconds until `check` was true; the error tells what the cluster says of it."""
        start = time.monotonic()
        while not check():
            if time.monotonic() - start > timeout:
                raise ToolError(f"waited {timeout:.0f} s in vain for {what}\n{on_fail()}")
            time.sleep(0.1)
        return time.monotonic() - start


def condition(obj: dict[str, Any], type_: str) -> str:
    """The status of a condition, "" when it is not there."""
    for item in obj.get("status", {}).get("conditions", []):
        if item["type"] == type_:
            return str(item["status"])
    return ""
