"""deploy/compose.yaml, by the rules of the Compose specification."""

import json
import pathlib
import shutil
import subprocess

import pytest
import yaml

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
SPECIFICATION = "github.com/compose-spec/compose-go/v2@v2.16.2"


@pytest.fixture(scope="module")
def schema():
    jsonschema = pytest.importorskip("jsonschema")
    if shutil.which("go") is None:
        pytest.skip("Go, which fetches the Compose specification, is not installed")
    got = subprocess.run(["go", "mod", "download", "-json", SPECIFICATION], capture_output=True,
                         text=True, cwd="/")
    if got.returncode != 0:
        pytest.skip(f"{SPECIFICATION} cannot be had: {got.stdout}{got.stderr}")
    folder = pathlib.Path(json.loads(got.stdout)["Dir"])
    return jsonschema.Draft202012Validator(
        json.loads((folder / "schema/compose-spec.json").read_text()))


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_it_is_a_compose_file(schema, compose):
    assert [error.message for error in schema.iter_errors(compose)] == []
    # The schema is one that finds something.
    compose = dict(compose, services={"whitd": {"imaeg": "whit"}})
    assert [error.message for error in schema.iter_errors(compose)] != []


def test_what_it_names_is_there(compose):
    stages = [line.split()[-1] for line in (DEPLOY / "Dockerfile").read_text().splitlines()
              if line.startswith("FROM ")]
    for name, service in compose["services"].items():
        if "build" in service:
            build = service["build"]
            assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
            assert build.get("target", "whitd") in stages
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), (name, source)
            else:
                assert source in compose["volumes"], (name, source)
        assert set(service.get("depends_on", {})) <= set(compose["services"])


def test_nothing_is_open_to_other_machines_but_tls(compose):
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == ["8443:8443"]
    for name, service in compose["services"].items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
