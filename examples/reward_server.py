"""A reward server with the standard library alone: scores responses by their share of lower-case letters.

    python examples/reward_server.py [PORT]
    kleash train CONFIG.toml --set reward.model=http://127.0.0.1:8000/score

The protocol is in docs/rewards.md.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers each request from what is in it alone: a request may come twice."""

    def do_POST(self) -> None:
        """Scores the responses of one request, in their order."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        scores = [sum(c.islower() for c in text) / (len(text) or 1) for text in asked["responses"]]
        body = json.dumps({"scores": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(f"serving http://127.0.0.1:{server.server_port}/score", flush=True)
        server.serve_forever()
