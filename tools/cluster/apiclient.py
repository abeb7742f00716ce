"""The few reads that the cluster's own waits need, over plain HTTPS with the administrator's certificate.

kubectl would do, at 60 ms of processor time a call; a wait polls every 50 ms on a machine with two cores.
"""

import base64
import http.client
import json
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import yaml

from tools.shell import ToolError


@dataclass(frozen=True)
class ApiClient:
    """GET with a client certificate; a new connection each time."""

    host: str
    port: int
    context: ssl.SSLContext

    @classmethod
    def from_kubeconfig(cls, path: Path) -> "ApiClient":
        """Read what write_kubeconfig wrote."""
        try:
            config = yaml.safe_load(path.read_text())
            cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
            url = urlsplit(cluster["server"])
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
            certificate = base64.b64decode(user["client-certificate-data"])
            key = base64.b64decode(user["client-key-data"])
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ToolError(f"{path} is not a kubeconfig of ours: {error}") from error
        context = ssl.create_default_context(cadata=authority)
        # The ssl module takes a client certificate only from a file; mode 0600, gone at once.
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(certificate + key)
            pair.flush()
            context.load_cert_chain(pair.name)
        return cls(url.hostname or "", url.port or 443, context)

    def get(self, path: str, *, timeout: float = 5) -> tuple[int, bytes]:
        """Status and body; (0, reason) where nobody answers."""
        connection = http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self.context)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error).encode()
        finally:
            connection.close()

    def ok(self, path: str) -> bool:
        """The path answers 200."""
        return self.get(path)[0] == 200

    def node_condition(self, name: str) -> tuple[bool, str]:
        """(Ready, last heartbeat as RFC 3339) of a Node; (False, "") where there is none."""
        status, body = self.get(f"/api/v1/nodes/{name}")
        if status != 200:
            return False, ""
        node = cast(dict[str, Any], json.loads(body))
        for condition in node.get("status", {}).get("conditions", []):
            if condition["type"] == "Ready":
                return condition["status"] == "True", str(condition.get("lastHeartbeatTime") or "")
        return False, ""
