"""Writes an image of one layer, as `docker save` does, for `ctr images import`.

python image.py ROOT.tar NAME:TAG TARGET.tar [ENTRYPOINT WORD...]
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import sys
import tarfile
from pathlib import Path


def main(root: str, name: str, target: str, *entrypoint: str) -> None:
    """Put the files of a tar and what is said of them into another."""
    digest = hashlib.sha256(Path(root).read_bytes()).hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": {
            "Entrypoint": list(entrypoint),
            "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        archive.add(root, "layer.tar")
        for path, text in (("config.json", json.dumps(config)), ("manifest.json", json.dumps(manifest))):
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))


if __name__ == "__main__":
    main(*sys.argv[1:])
