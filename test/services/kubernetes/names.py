"""Answers pods who ask for the address of a headless Service, or of one of its pods, as a cluster's DNS does.

    python names.py ADDRESS KUBECONFIG

Each question is passed on to the API server, so that an answer is never older than the question.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ZONE = ["svc", "cluster", "local"]
NO_SUCH_NAME = 3


class Cluster:
    """What the API server knows of Services."""

    def __init__(self, config: str) -> None:
        [self.url] = re.findall(r'server: "([^"]+)"', config)
        [authority] = re.findall(r"certificate-authority: ([^}]+)}", config)
        self.token = re.findall(r"token: (\w+)", config)[0]
        self.authority = authority

    def addresses(self, labels: list[str]) -> list[str]:
        """Those of SERVICE.NAMESPACE.svc.cluster.local, or of the one pod HOSTNAME.SERVICE.…"""
        if labels[-3:] != ZONE or len(labels) not in (5, 6):
            return []
        *hostname, service, namespace = labels[:-3]
        request = urllib.request.Request(
            f"{self.url}/api/v1/namespaces/{namespace}/endpoints/{service}",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        try:
            context = ssl.create_default_context(cafile=self.authority)
            with urllib.request.urlopen(request, timeout=4, context=context) as answer:
                subsets = json.load(answer).get("subsets", [])
        except urllib.error.HTTPError:
            return []
        found = [address for subset in subsets for address in subset.get("addresses", [])]
        return [each["ip"] for each in found if not hostname or each.get("hostname") == hostname[0]]


def answer(question: bytes, cluster: Cluster) -> bytes:
    """The reply to one message: only IPv4 addresses are known."""
    labels, end = [], 12
    while size := question[end]:
        labels.append(question[end + 1 : end + 1 + size].decode().lower())
        end += 1 + size
    end += 5
    addresses = cluster.addresses(labels)
    shown = addresses if question[end - 4 : end - 2] == b"\0\1" else []
    flags = 0x8580 | (0 if addresses else NO_SUCH_NAME)
    head = struct.pack("!2sHHHHH", question[:2], flags, 1, len(shown), 0, 0)
    records = [b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(each) for each in shown]
    return head + question[12:end] + b"".join(records)


def main(address: str, config: str) -> None:
    """Answer for as long as this process lives."""
    cluster = Cluster(Path(config).read_text())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, ThreadPoolExecutor(8) as pool:
        server.bind((address, 53))

        def reply(question: bytes, asker: tuple[str, int]) -> None:
            try:
                server.sendto(answer(question, cluster), asker)
            except Exception as exc:  # who asked will ask again
                print(f"{asker}: {exc!r}", flush=True)

        while True:
            pool.submit(reply, *server.recvfrom(512))


if __name__ == "__main__":
    main(*sys.argv[1:])
