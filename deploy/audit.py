"""What `make audit` runs: python deploy/audit.py requirements.txt build/sbom.json

First it lists all pinned packages (SBOM, CycloneDX), without the network. Then pip-audit looks up their known
vulnerabilities in the advisories of the package index. pip-audit accepts packages that it could not look up; here they
are counted, so that a failed look-up is not reported as a clean audit.

Exit codes: 0 nothing known, 1 a vulnerability is known, 2 some packages could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def main(pins: str, sbom: str) -> int:
    """Write the SBOM, look the pins up, and say what came of it."""
    Path(sbom).parent.mkdir(parents=True, exist_ok=True)
    inventory = ["cyclonedx_py", "requirements", pins, "--pyproject", "pyproject.toml", "--output-reproducible"]
    subprocess.run([sys.executable, "-W", "ignore", "-m", *inventory, "--of", "JSON", "-o", sbom], check=True)
    parts = json.loads(Path(sbom).read_text(encoding="utf-8"))["components"]
    print(f"audit: {sbom} lists {len(parts)} packages")

    look_up = ["pip_audit", "-r", pins, "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run([sys.executable, "-m", *look_up], capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"audit: the advisories could not be asked ({why}); try again where they can be reached", file=sys.stderr)
        return 2
    return report(found)


def report(found: list[dict]) -> int:
    """Say what is known of each package of pip-audit's answer; the exit code."""
    known = [(each, weakness) for each in found for weakness in each.get("vulns", ())]
    for each, weakness in known:
        better = ", ".join(weakness["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']}: {weakness['id']}, fixed in {better}")
    unknown = [each["name"] for each in found if "skip_reason" in each]
    print(f"audit: {len(found) - len(unknown)} packages looked up, {len(known)} weaknesses known")
    if unknown:
        shown = ", ".join(unknown[:5]) + (", …" if len(unknown) > 5 else "")
        print(
            f"audit: {len(unknown)} of {len(found)} packages could not be looked up ({shown}): the advisories of the "
            "package index could not be reached for them; run make audit again where they can be",
            file=sys.stderr,
        )
    return 1 if known else 2 if unknown else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
