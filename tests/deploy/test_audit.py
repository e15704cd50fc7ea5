"""`make audit` says what is known, and does not call clean what it could not look up."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).parents[2] / "deploy" / "audit.py"
spec = importlib.util.spec_from_file_location("audit", PATH)
audit = importlib.util.module_from_spec(spec)
spec.loader.exec_module(audit)

CLEAN = {"name": "msgspec", "version": "0.19", "vulns": []}
WEAK = {"name": "lib", "version": "1.0", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["1.1"]}]}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.9)"}


def test_a_vulnerability_is_named_with_the_version_that_fixes_it(capsys):
    assert audit.report([CLEAN, WEAK]) == 1
    assert "lib 1.0: CVE-2026-1, fixed in 1.1" in capsys.readouterr().out


def test_packages_that_could_not_be_looked_up_fail_the_audit(capsys):
    assert audit.report([CLEAN]) == 0
    assert audit.report([CLEAN, SKIPPED]) == 2
    assert "1 of 2 packages could not be looked up (torch)" in capsys.readouterr().err
