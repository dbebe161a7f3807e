"""INSTALL.md of a bundle: the commands for the machine without a network."""

from collections.abc import Mapping
from typing import Any

HEAD = """# {name}

Everything in this folder was checked when it was packed; check it again where it is used:

    python3 verify.py

or, before unpacking, `python3 verify.py BUNDLE.tar`. If there is a `BUNDLE.tar.minisig` beside the
archive: `minisign -Vm BUNDLE.tar -p KEY.pub`, with a public key that you were given another way.
"""
WHEELS = """
## Software

For {machine} and Python {python}; no network is used:

    python3 -m venv soroq-venv
    soroq-venv/bin/pip install --no-index --no-deps wheels/*.whl
"""
NO_WHEELS = """
## Software

This bundle has none: `pip install 'soroq[onnx]'` where there is a network.
"""
RUN_ONNX = """
## Run

    soroq-venv/bin/soroq run onnx -p "Душанбе"
"""
RUN_MODEL = """
    soroq-venv/bin/soroq generate model -p "Душанбе"
"""


def install_text(facts: Mapping[str, Any]) -> str:
    """Return INSTALL.md for a manifest's facts."""
    parts = [HEAD.format(name=(facts["model"] or facts["onnx"])["name"])]
    if facts["runtime"]:
        parts.append(WHEELS.format(machine=facts["machine"], python=facts["python"]))
    else:
        parts.append(NO_WHEELS)
    if facts["onnx"]:
        parts.append(RUN_ONNX)
    if facts["model"] and facts["runtime"] != "onnx":
        parts.append(("" if facts["onnx"] else "\n## Run\n") + RUN_MODEL)
    quality = facts["quality"]
    if quality:
        parts.append("\n## Quality\n\n")
        for report in quality:
            verdict = report.get("verdict")
            against = f": {verdict}, against {report['base']}" if verdict else ""
            parts.append(f"- reports/{report['file']}{against}\n")
    else:
        parts.append("\n## Quality\n\nNo report of what quantization cost is in this bundle.\n")
    parts.append("\nThe model's terms and all licences: LICENCES.md.\n")
    return "".join(parts)
