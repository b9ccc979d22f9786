"""Where nginx is, an HTTP server that is not ours."""

from __future__ import annotations

import shutil

BINARY = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
"""None where it is not installed (Debian: nginx-light)."""
