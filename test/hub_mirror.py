"""A server on this machine that answers as the Hugging Face Hub does."""

import contextlib
import hashlib
import http.server
import json
import threading
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT, OLDER = "a" * 40, "b" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a server: facts of a repository, and files."""

    repositories: dict = {}
    asked: list = []
    fault = None

    def log_message(self, *_):
        """Say nothing."""

    def reply(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        address = urlsplit(self.path)
        words = unquote(address.path).strip("/").split("/")
        self.asked.append((self.command, self.path))
        if words[0] == "api":
            kind, name = words[1], "/".join(words[2:4])
            revision = words[5] if len(words) > 5 else "main"
            if words[4:5] == ["tree"]:
                return self.tree(name)
            return self.facts(kind, name, revision, parse_qs(address.query))
        words = words[1:] if words[0] == "datasets" else words
        name, revision, file = "/".join(words[:2]), words[3], "/".join(words[4:])
        content = self.repositories[name]["files"][file]
        if self.fault == "damage" and self.command == "GET":
            content = content[:-1] + b"x"
        tag = hashlib.sha256(self.repositories[name]["files"][file]).hexdigest()
        return self.reply(200, content, ETag=f'"{tag}"', X_Repo_Commit=revision)

    def tree(self, name):
        """All files of a repository, in one page."""
        files = self.repositories[name]["files"].items()
        rows = [
            {"type": "file", "path": file, "size": len(content), "oid": "0"}
            for file, content in files
        ]
        return self.reply(200, json.dumps(rows).encode())

    def facts(self, kind, name, revision, query):
        known = self.repositories.get(name)
        if known is None or known.get("kind", "models") != kind:
            return self.reply(401, X_Error_Code="RepoNotFound")
        if known.get("gated"):
            return self.reply(403, X_Error_Code="GatedRepo")
        commits = {"main": COMMIT, COMMIT: COMMIT, "v1": OLDER, OLDER: OLDER}
        commits.update({known.get("commit", COMMIT): known.get("commit", COMMIT)})
        if revision not in commits:
            return self.reply(404, X_Error_Code="RevisionNotFound")
        siblings = []
        for file, content in known["files"].items():
            entry = {"rfilename": file, "size": len(content), "blobId": "0"}
            if file.endswith((".safetensors", ".bin", ".pt")):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {
                    "sha256": digest, "size": len(content), "pointerSize": 1,
                }  # fmt: skip
            siblings.append(entry)
        content = {"id": name, "sha": commits[revision], "siblings": siblings}
        content["tags"] = ["license:mit"] if kind == "datasets" else []
        if kind == "models":
            content["cardData"] = {"license": "apache-2.0"}
        return self.reply(200, json.dumps(content).encode())


@contextlib.contextmanager
def serving(handler=Hub):
    """The address under which it answers until the block ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
