"""Whole bundles of a tiny model: what is in them, what is refused, and wheels."""

import importlib.metadata
import json
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement as Parsed
from typer.testing import CliRunner

from soroq.bundle.wheels import Requirement, closure, fetch_wheels, find_wheels, read_wheel
from soroq.core.errors import OutputError, SchemeError, SoroqError
from soroq.core.recipe import Recipe
from soroq.core.schemes import get_scheme
from soroq.models.tiny import write_tiny_model
from soroq.pipeline.run import quantize


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundle")
    base = write_tiny_model(root / "base")
    recipe = Recipe(get_scheme("int8-rtn", group_size=32))
    quantize(str(base), root / "tiny-int8", recipe=recipe, calibration=None)
    (root / "tiny-int8" / ".cache").mkdir()
    (root / "tiny-int8" / ".cache" / "x").write_text("not for others")
    return root / "tiny-int8"


@pytest.fixture
def terms(tmp_path: Path) -> Path:
    path = tmp_path / "TERMS.txt"
    path.write_text("terms of the model")
    return path


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "check.json"
    path.write_text(json.dumps({"base": "tiny", "verdict": "pass"}))
    return path


@dataclass(frozen=True)
class Done:
    returncode: int
    stderr: str


def _soroq(*arguments: str | Path) -> Done:
    """Run a command in this process; soroq's own errors are what `main` makes of them."""
    from soroq.cli import app

    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, SoroqError):
        return Done(2, str(result.exception))
    return Done(result.exit_code, result.output)


def _wheel(folder: Path, name: str, version: str, licence: str = "License: MIT") -> Path:
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{licence}\n"
        archive.writestr(f"{info}/METADATA", text)
        archive.writestr(f"{info}/licenses/LICENSE", "the text")
        archive.writestr(f"{name}/LICENSE", "not this one")
    return path


def test_a_bundle_is_packed_checked_and_unpacked(
    model: Path, terms: Path, report: Path, tmp_path: Path
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wanted = closure("onnx")
    for requirement in wanted:
        _wheel(wheels, requirement.name, requirement.version)
    _wheel(wheels, "soroq", "0.1.0", "License-Expression: Apache-2.0")
    out = tmp_path / "out.tar"
    options = ["--model", model, "--report", report, "--licence", terms, "--wheel-dir", wheels]
    done = _soroq("bundle", out, *options)
    assert done.returncode == 0, done.stderr
    with tarfile.open(out) as archive:
        names = archive.getnames()
        manifest = json.load(archive.extractfile("MANIFEST.json"))  # type: ignore[arg-type]
    assert {"model/config.json", "model/soroq.json", "reports/check.json", "verify.py"} < set(names)
    assert "licences/model/TERMS.txt" in names and "licences/numpy/LICENSE" in names
    assert len([n for n in names if n.startswith("wheels/")]) == len(wanted) + 1
    assert not any(".cache" in name for name in names)
    assert manifest["model"] == {"name": "tiny-int8", "source": "base", "scheme": "int8-rtn"}
    assert manifest["quality"] == [{"file": "check.json", "base": "tiny", "verdict": "pass"}]
    assert _soroq("bundle", "--verify", out).returncode == 0
    unpacked = tmp_path / "unpacked"
    assert _soroq("bundle", unpacked, "--unpack", out).returncode == 0
    for file in model.iterdir():
        if file.is_file():
            assert (unpacked / "model" / file.name).read_bytes() == file.read_bytes()
    install = (unpacked / "INSTALL.md").read_text()
    assert "--no-index" in install and "reports/check.json: pass, against tiny" in install
    table = (unpacked / "LICENCES.md").read_text()
    assert "| numpy" in table and "| MIT |" in table
    again = tmp_path / "again.tar"
    assert _soroq("bundle", again, *options).returncode == 0
    assert again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--no-report"], "has no licence file", id="licence"),
        pytest.param(["--licence", "TERMS"], "no --report", id="report"),
        pytest.param(
            ["--licence", "TERMS", "--report", "x.json"], "is no file", id="missing-report"
        ),
        pytest.param(["--no-report", "--sign", "TERMS"], "minisign", id="key"),
        pytest.param(
            ["--no-report", "--wheels", "--wheel-dir", "."], "lacks the wheels of", id="wheels"
        ),
        pytest.param(
            ["--no-report", "--wheels", "--runtime", "jax"], "'jax' is unknown", id="runtime"
        ),
    ],
)
def test_what_is_missing_is_one_line(
    model: Path, terms: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [
        str(terms) if o == "TERMS" else o.replace("x.json", str(tmp_path / "x")) for o in options
    ]
    wheels = [] if "--wheels" in given else ["--no-wheels"]
    done = _soroq("bundle", tmp_path / "out.tar", "--model", model, *wheels, *given)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.tar").exists()


def test_a_runtime_is_closed_under_what_it_needs() -> None:
    """Every installed package in it finds what its own metadata asks for in it too."""
    found = {r.name: r.version for r in closure("onnx")}
    assert {"numpy", "onnxruntime", "tokenizers", "jinja2", "markupsafe"} <= set(found)
    assert "torch" not in found and "soroq" not in found
    for name, version in found.items():
        package = importlib.metadata.distribution(name)
        assert package.version == version
        for text in package.requires or []:
            needed = Parsed(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert needed.name.lower().replace("_", "-") in found, (name, text)
    with pytest.raises(SchemeError, match="known: onnx, torch"):
        closure("x")


def test_licences_are_read_from_wheels(tmp_path: Path) -> None:
    long = (
        "License: "
        + "Permission is hereby granted " * 9
        + "\nClassifier: License :: OSI :: MIT License"
    )
    facts = read_wheel(_wheel(tmp_path, "one", "1.0", long))
    assert facts.licence == "MIT License" and facts.files == {"LICENSE": b"the text"}
    assert read_wheel(_wheel(tmp_path, "two", "1.0", "Author: x")).licence == "not stated"
    (tmp_path / "x.whl").write_bytes(b"PK")
    with pytest.raises(OutputError, match="not a wheel"):
        read_wheel(tmp_path / "x.whl")
    with pytest.raises(OutputError, match="soroq"):
        find_wheels(tmp_path, [])


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.13.0"])
def test_a_build_with_an_index_of_its_own_is_told_apart(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(OutputError, match="pip download failed.*--wheel-dir") as error:
        fetch_wheels(tmp_path, [Requirement("torch", version)])
    assert (f"the build torch=={version}" in str(error.value)) == ("+" in version)
    assert ("PIP_EXTRA_INDEX_URL" in str(error.value)) == ("+" in version)
