"""What stands in deploy/: files for the programs that run ours, held against what ours understand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, cast

import dns.zone
import pytest
import yaml
from dns.rdtypes.IN.SRV import SRV

from nattools.cli.stund_metrics import Link, StundState, metrics_of
from nattools.endpoint import Endpoint
from nattools.net.metrics import expose
from nattools.stun.counts import Counts
from nattools.stun.limiter import Level
from nattools.stun.responder import DEFAULT_ALTERNATE_PORT, DEFAULT_PORT
from nattools.stun.uri import Transport
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "stund.service"
SETTINGS = DEPLOY / "stund.toml"
PAGE = ROOT / "docs" / "stund-growing.md"
SETTINGS_THERE = "/etc/nattools/stund.toml"
TIME_LIMIT_S = 30

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not here to read it"
)


def check(*arguments: str) -> str:
    """What `stund --check-config` says of a command line, which must be good."""
    done = subprocess.run(
        [sys.executable, "-m", "nattools.cli.stund", *arguments, "--check-config"],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def with_settings_at(path: Path, arguments: list[str]) -> list[str]:
    """The arguments, with our settings where they name those of the machine they are for."""
    assert SETTINGS_THERE in arguments
    return [str(path) if argument == SETTINGS_THERE else argument for argument in arguments]


# The settings that all of them start from


def test_the_settings_are_good_as_they_stand() -> None:
    assert "3478" in check("--config", str(SETTINGS))


def test_each_setting_that_is_shown_is_good(tmp_path: Path) -> None:
    shown, count = re.subn(r"(?m)^#(?=\w+ = )", "", SETTINGS.read_text())
    assert count > 0
    (tmp_path / "stund.toml").write_text(shown)
    good = check("--config", str(tmp_path / "stund.toml"))
    assert all(address in good for address in tomllib.loads(shown)["addresses"])


# systemd


def command_of_the_unit() -> list[str]:
    [line] = [line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart=")]
    program, *arguments = shlex.split(line.partition("=")[2])
    assert Path(program).name == "stund"
    return with_settings_at(SETTINGS, arguments)


def test_the_unit_starts_stund_with_options_that_it_has() -> None:
    check(*command_of_the_unit())


def test_stund_tells_the_service_manager_when_it_serves_as_the_unit_says(tmp_path: Path) -> None:
    assert "Type=notify\n" in UNIT.read_text()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"nattools-deploy-{os.getpid()}"
        manager.bind(f"\0{name}")
        manager.settimeout(TIME_LIMIT_S)
        stund = subprocess.Popen(
            [sys.executable, "-m", "nattools.cli.stund", "127.0.0.1", "--port", str(free_port())],
            env=os.environ | {"NOTIFY_SOCKET": f"@{name}"},
        )
        try:
            told = manager.recv(10_000).decode()
            stund.terminate()
            assert stund.wait(TIME_LIMIT_S) == 0
        finally:
            stund.kill()
            stund.wait()
    assert told.startswith("READY=1\nSTATUS=serving 127.0.0.1:")


@needs_systemd
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "stund.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/stund", "/bin/true"))
    said, code = verify(unit)
    assert "stund.service" not in said, said
    assert code == 0, said


@needs_systemd
def test_a_line_that_systemd_does_not_know_would_be_found(tmp_path: Path) -> None:
    unit = tmp_path / "stund.service"
    unit.write_text("[Service]\nExecStart=/bin/true\nPrivateDevicez=yes\n")
    assert "stund.service" in verify(unit)[0]


def verify(unit: Path) -> tuple[str, int]:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT_S,
    )
    return done.stderr, done.returncode


# The container


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in (DEPLOY / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def instruction(wanted: str) -> str:
    """What the last stage says with this instruction."""
    return [rest for name, rest in instructions() if name == wanted][-1]


def test_the_container_has_what_the_wheel_is_built_from() -> None:
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in shlex.split(rest)[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]}
    needed |= {Path(project["tool"]["hatch"]["version"]["path"]).parts[0]}
    assert needed <= copied
    assert "server" in project["project"]["optional-dependencies"]
    assert any(name == "RUN" and '"/source[server]"' in rest for name, rest in instructions())


def test_the_container_starts_stund_with_settings_that_it_has() -> None:
    assert f"COPY deploy/stund.toml {SETTINGS_THERE}" in (DEPLOY / "Containerfile").read_text()
    [program] = json.loads(instruction("ENTRYPOINT"))
    assert Path(program).name == "stund"
    check(*with_settings_at(SETTINGS, json.loads(instruction("CMD"))))


def test_the_container_is_nobody_and_names_the_ports_of_stund() -> None:
    user, _, group = instruction("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0
    exposed = set(instruction("EXPOSE").split())
    ports = (DEFAULT_PORT, DEFAULT_ALTERNATE_PORT)
    assert {f"{port}/{transport}" for port in ports for transport in ("udp", "tcp")} <= exposed
    assert instruction("STOPSIGNAL") == "SIGTERM"


# Kubernetes


def documents() -> dict[str, Any]:
    """Each document by its kind."""
    every = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert all(each["metadata"].get("namespace", "stund") == "stund" for each in every)
    return {each["kind"]: each for each in every}


def test_the_settings_in_the_config_map_are_good_and_found_by_the_container(tmp_path: Path) -> None:
    found = documents()
    pod = found["Deployment"]["spec"]["template"]["spec"]
    [container], [volume] = pod["containers"], pod["volumes"]
    [mount] = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert volume["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    [(name, text)] = found["ConfigMap"]["data"].items()
    assert f"{mount['mountPath']}/{name}" == SETTINGS_THERE
    (tmp_path / name).write_text(text)
    check(*with_settings_at(tmp_path / name, container["args"]))


def test_what_selects_pods_selects_these() -> None:
    found = documents()
    spec = found["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"].items()
    [apart] = spec["template"]["spec"]["affinity"]["podAntiAffinity"].values()
    selectors = [
        spec["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"],
        apart[0]["labelSelector"],
    ]
    for selector in selectors:
        assert selector["matchLabels"].items() <= labels


def test_one_node_after_the_other_is_without_stund() -> None:
    found = documents()
    spec = found["Deployment"]["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_the_pod_has_the_nodes_ports_and_its_probes_ask_where_the_metrics_are() -> None:
    found = documents()
    pod = found["Deployment"]["spec"]["template"]["spec"]
    assert pod["hostNetwork"] is True
    [container] = pod["containers"]
    ports = {port["name"]: port for port in container["ports"]}
    udp, tcp, metrics = ports["stun-udp"], ports["stun-tcp"], ports["metrics"]
    assert (udp["containerPort"], udp["protocol"]) == (DEFAULT_PORT, "UDP")
    assert (tcp["containerPort"], tcp["protocol"]) == (DEFAULT_PORT, "TCP")
    [settings] = found["ConfigMap"]["data"].values()
    served = Endpoint.parse(tomllib.loads(settings)["metrics"])
    assert served.port == metrics["containerPort"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["host"] == str(served.ip)
        assert ports[asked["port"]] is metrics
        assert asked["path"] == ("/health" if probe == "readinessProbe" else "/live")


def test_the_pod_may_nothing_that_stund_does_not_need() -> None:
    pod = documents()["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}" == instruction(
        "USER"
    )
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


# Prometheus


def samples() -> set[str]:
    """The names of all values that stund tells, and each label with its value."""
    link = Link(4, is_up=True, handed_over=0, taken_over=0, dropped={})
    state = StundState([], Counts(), dict.fromkeys(Level, 0), 1, links=[link])
    text = expose(metrics_of(state)).decode()
    return set(re.findall(r"^\w+", text, re.MULTILINE)) | set(re.findall(r'\w+="\w+"', text))


def expressions() -> dict[str, str]:
    [group] = yaml.safe_load((DEPLOY / "stund-alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def test_each_alert_is_about_something_that_stund_tells() -> None:
    told = samples()
    names = {name for expression in expressions().values() for name in re.findall(r"stund_\w+", expression)}
    assert names
    assert names <= told


def test_each_label_of_an_alert_has_a_value_that_stund_gives_it() -> None:
    told = samples()
    of_stund = [expression for expression in expressions().values() if "stund_" in expression]
    asked = [found for expression in of_stund for found in re.findall(r'(\w+)=~?"([\w|]+)"', expression)]
    assert {label for label, _ in asked} == {"reason", "level"}
    for label, values in asked:
        assert {f'{label}="{value}"' for value in values.split("|")} <= told


def test_the_page_on_several_machines_has_records_that_dns_takes() -> None:
    [section] = [section for section in PAGE.read_text().split("\n## ") if section.startswith("DNS\n")]
    text = "".join(f"{line[4:]}\n" for line in section.splitlines() if line.startswith("    "))
    zone = dns.zone.from_text(text, "example.org.", relativize=False, check_origin=False)
    found = {
        name.to_text().removesuffix(".example.org."): [cast(SRV, record) for record in records]
        for name, records in zone.iterate_rdatasets("SRV")
    }
    assert {transport.service for transport in Transport} | {"_stun-behavior._udp"} == set(found)
    for service, records in found.items():
        transport = Transport.TLS if service.startswith("_stuns") else Transport.UDP
        assert {record.port for record in records} == {transport.default_port}
        own = [record.target for record in records if record.target.is_subdomain(zone.origin)]
        assert own
        assert all(zone.get_rdataset(target, "A") is not None for target in own)


def test_each_alert_is_explained() -> None:
    page = PAGE.read_text()
    assert [alert for alert in expressions() if f"`{alert}`" not in page] == []
