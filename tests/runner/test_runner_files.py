"""Runner files for systemd, Docker and Kubernetes: checked here without running any of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from bot.watch.sizing import RUNNER_VRAM_GB

FOLDER = Path(__file__).parents[2] / ".github" / "runner"
KUBERNETES = ("1.33", "1.37")  # the oldest and the newest that the values are checked against
FAKE_DOCKER = """\
#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$RECORD"
printf 'seen=%s\\n' "${ACTIONS_RUNNER_INPUT_JITCONFIG:-}" >>"$RECORD.environment"
"""


def read(name: str) -> str:
    return (FOLDER / name).read_text()


def values() -> dict[str, Any]:
    return dict(yaml.safe_load(read("scale-set.yaml")))


# --- the scale set ------------------------------------------------------------------------------------------


def check_values(**changed: Any) -> None:
    """`make check-workflows` checks the values as they are."""
    jsonschema.validate(values() | changed, json.loads(read("scale-set.schema.json")))


@pytest.mark.parametrize(
    "changed",
    [
        {"minRunner": 0},
        {"minRunners": 1},
        {"scaleSetLabels": ["gpu-24gb"]},
        {"githubConfigSecret": {"github_token": "ghp_in_a_file"}},
        {"githubConfigUrl": "someone/awq-bot"},
    ],
)
def test_schema_refuses_what_would_not_work_or_not_be_safe(changed: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check_values(**changed)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_pod_template_is_valid(version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": values()["template"]["spec"]}
    kubernetes_validate.validate(pod, version, strict=True)
    pod["spec"]["volumes"][0]["ephemeral"]["volumeClaim"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, version, strict=True)


def test_pods_have_one_gpu_an_ephemeral_disk_and_no_permissions() -> None:
    spec = values()["template"]["spec"]
    [runner] = spec["containers"]
    assert runner["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounts = {mount["name"]: mount["mountPath"] for mount in runner["volumeMounts"]}
    ephemeral = [volume["name"] for volume in spec["volumes"] if "ephemeral" in volume]
    assert [mounts[name] for name in ephemeral] == ["/home/runner/_work"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert not spec["automountServiceAccountToken"]
    assert "secret" not in json.dumps(spec).lower()


SIZES = tuple(f"gpu-{size}gb" for size in RUNNER_VRAM_GB)


def test_labels_name_each_memory_size_up_to_that_of_the_gpu() -> None:
    example = re.search(r"^RUNNER_LABELS=(.*)$", read("runner.env.example"), re.MULTILINE)
    assert example is not None
    assert example[1].split(",") == values()["scaleSetLabels"] == ["self-hosted", "gpu", *SIZES[:2]]
    for size in SIZES:
        assert size in read("runner.env.example")


@pytest.mark.parametrize("count", range(1, len(SIZES) + 1))
def test_a_scale_set_that_leaves_a_size_out_is_refused(count: int) -> None:
    labels = ["self-hosted", "gpu", *SIZES[:count]]
    check_values(scaleSetLabels=labels)
    for size in SIZES[: count - 1] or SIZES[:1]:
        with pytest.raises(jsonschema.ValidationError):
            check_values(scaleSetLabels=[label for label in labels if label != size])


# --- the image ----------------------------------------------------------------------------------------------


def test_image_pins_its_downloads_and_runs_unprivileged() -> None:
    text = read("Dockerfile")
    assert "FROM ${BASE_IMAGE}@${BASE_DIGEST}" in text
    for name in ("BASE_IMAGE", "BASE_DIGEST", "RUNNER_VERSION", "RUNNER_SHA256", "PYTHON_VERSION"):
        assert re.search(rf"^ARG {name}$", text, re.MULTILINE), name
        assert f"--build-arg {name}=" in read("README.md"), name
    assert "sha256sum --check --strict" in text
    assert "--require-hashes" in text
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1001:1001"]


def test_image_takes_only_what_it_copies_from_the_checkout() -> None:
    copied = {
        word for line in read("Dockerfile").splitlines() if line.startswith("COPY") for word in line.split()[2:-1]
    }
    kept = {line[1:] for line in read("Dockerfile.dockerignore").splitlines() if line.startswith("!")}
    assert copied == kept
    assert all((FOLDER.parents[1] / name).exists() for name in copied)


def test_containers_get_the_registration_through_their_environment(tmp_path: Path) -> None:
    docker, record = tmp_path / "docker", tmp_path / "record"
    docker.write_text(FAKE_DOCKER)
    docker.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RECORD": str(record),
        "RUNNER_WORK": "/srv/awq-bot/runner",
        "RUNNER_IMAGE": "awq-bot-runner",
        "ACTIONS_RUNNER_INPUT_JITCONFIG": "a secret",
    }
    subprocess.run([str(FOLDER / "in-container.sh"), "/home/runner/run.sh"], env=environment, check=True)
    words = record.read_text().splitlines()
    assert words[:3] == ["rm", "--force", "awq-bot-runner"]
    assert words[-2:] == ["awq-bot-runner", "/home/runner/run.sh"]
    assert words[words.index("--env") + 1] == "ACTIONS_RUNNER_INPUT_JITCONFIG"
    assert "type=bind,src=/srv/awq-bot/runner/job,dst=/home/runner/_work" in words
    assert "a secret" not in words
    assert "seen=a secret" in Path(f"{record}.environment").read_text()


# --- the service --------------------------------------------------------------------------------------------


def test_unit_restarts_the_script_and_holds_no_secret() -> None:
    unit = dict(line.split("=", 1) for line in read("awq-bot-runner.service").splitlines() if "=" in line)
    assert unit["Restart"] == "always"
    assert unit["RestartPreventExitStatus"] == "78"
    assert unit["LoadCredential"] == "github-token:/etc/awq-bot/github-token"
    assert Path(unit["ExecStart"]).name == "jit-runner.sh"
    assert "token" not in unit["ExecStart"].lower()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here to read its unit")
def test_unit_is_valid_for_systemd(tmp_path: Path) -> None:
    unit = tmp_path / "awq-bot-runner.service"
    text = read(unit.name).replace("/opt/awq-bot/runner/jit-runner.sh", str(FOLDER / "jit-runner.sh"))
    # Whether docker and its unit are here is not what is asked.
    unit.write_text(re.sub(r"^Requires=.*\n", "", text, flags=re.MULTILINE))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
