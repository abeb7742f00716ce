"""README.md is true to the letter: every command of its tour is run, and prints what the page says."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

import pytest
from tools import build
from tools.paths import REPOSITORY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

README = (REPOSITORY / "README.md").read_text()
# What differs between two machines or two runs, and nothing else.
MASKS = (
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UID"),
    (re.compile(r"\ba-[0-9a-f]{40}\b"), "ATTACHMENT"),
    (re.compile(r"\b\d+\.\d\d[KMGTP]i\b"), "SIZE"),
    (re.compile(r"\b\d+m?\d*s\b"), "AGE"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass(frozen=True)
class Step:
    command: str
    output: tuple[str, ...]


def blocks(language: str) -> list[list[str]]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.M | re.S)
    return [block.splitlines() for block in found]


def tour() -> list[Step]:
    steps: list[Step] = []
    for block in blocks("console"):
        for line in block:
            if line.startswith("$ "):
                steps.append(Step(line[2:], ()))
            else:
                steps[-1] = Step(steps[-1].command, (*steps[-1].output, line))
    return steps


def masked(text: str) -> list[str]:
    for pattern, word in MASKS:
        text = pattern.sub(word, text)
    return [line.strip() for line in text.strip().splitlines()]


def shell(command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_tour_is_what_happens(cluster):
    kubectl, helm = build.binary("kubectl"), build.binary("helm")
    env = {
        "KUBECONFIG": str(cluster.kube.kubeconfig),
        "PATH": f"{kubectl.parent}:{helm.parent}:{os.environ['PATH']}",
    }
    manifests = " ".join(f"-f {name}" for name in sorted(_manifests()))
    gone = f"kubectl delete {manifests} --ignore-not-found --timeout=120s"
    assert shell(gone, **env).returncode == 0
    steps = tour()
    assert len(steps) >= 18, "the page lost its tour, or the parser no longer sees it"
    try:
        for step in steps:
            done = shell(step.command, **env)
            assert masked(done.stdout) == masked("\n".join(step.output)), step.command
    finally:
        shell(gone, **env)


def _manifests() -> set[str]:
    return {
        str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "examples" / "quickstart").glob("*.yaml")
    }


def test_every_other_command_is_one_that_the_tests_run():
    """`make` targets are CI's own; helm install and uninstall are run word by word in tests/e2e_chart."""
    commands = {line for block in blocks("sh") for line in block}
    assert commands == {
        "make demo",
        "make test",
        "helm install cinderblock deploy/helm/cinderblock --namespace cinderblock --create-namespace",
        "helm uninstall cinderblock --namespace cinderblock",
    }


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (REPOSITORY / target).exists(), target
