"""An HTTP server that is not ours: nginx on loopback, answering one status about every jid."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

BINARY = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
"""None where it is not installed (Debian: nginx-light)."""

CONFIG = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    location / {{ default_type application/json; return 200 '{{"jid": "$arg_jid", "status": "{status}"}}'; }}
  }}
}}
"""


@contextmanager
def nginx(status: str) -> Iterator[str]:
    """Serve *status* about every jid, and yield the server's URL."""
    if BINARY is None:
        raise SystemExit("nginx is not installed (Debian: apt-get install nginx-light)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # its worker is another user
        config = Path(folder) / "nginx.conf"
        config.write_text(CONFIG.format(folder=folder, port=port, status=status))
        server = subprocess.Popen([BINARY, "-c", config, "-e", f"{folder}/error.log"])
        try:
            for _ in range(200):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()
