"""`make audit`: asks OSV whether a package of requirements.lock has a known vulnerability.

Ends with 0 when every package was asked about and none has one, with 1 when one has, and with 3 when OSV gave
no answer: pip-audit alone calls that a failure or, with PyPI as its source, a success.
OSV_URL names another server with OSV's API.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OSV_URL = "https://api.osv.dev/v1/query"
NOT_AUDITED = 3


def main() -> int:
    lock = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "requirements.lock")
    audited = subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--requirement", lock, "--disable-pip"),
            *("--vulnerability-service", "osv", "--osv-url", os.environ.get("OSV_URL") or OSV_URL),
            *("--format", "json", "--progress-spinner", "off"),
        ],
        capture_output=True,
        text=True,
    )
    try:
        packages = json.loads(audited.stdout)["dependencies"]
    except ValueError:  # no report: pip-audit ended with a traceback, whose last line is the reason
        reason = audited.stderr.strip() or f"pip-audit ended with {audited.returncode}"
        return _not_audited(reason.splitlines()[-1])
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped or not packages:
        return _not_audited(f"no advisories for {', '.join(skipped) or 'an empty lock'}")
    found = [(package, finding) for package in packages for finding in package["vulns"]]
    for package, finding in found:
        fixed = ", ".join(finding["fix_versions"]) or "no version"
        print(
            f"audit: {package['name']} {package['version']}: {finding['id']}, mended in {fixed}",
            file=sys.stderr,
        )
    if not found:
        print(f"audit: {len(packages)} packages, none with a known vulnerability")
    return int(bool(found))


def _not_audited(reason: str) -> int:
    print(f"audit: not audited: {reason}", file=sys.stderr)
    return NOT_AUDITED


if __name__ == "__main__":
    sys.exit(main())
