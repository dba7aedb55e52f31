"""A Hub on this machine: serves folders as `/ORGANISATION/NAME/resolve/<revision>/<file>`, as the Hub's client asks."""
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants

COMMIT = '0123456789abcdef0123456789abcdef01234567'


class HubServer:
    """Serves every `root/ORGANISATION/NAME/` from a thread as long as the `with` block lasts.

    Args:
        root: Folder of the organisations.

    Attributes:
        url: What `HF_ENDPOINT` is to be.
        requests: `'METHOD path'` of every request so far.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), _handler(self))
        self.url = f'http://127.0.0.1:{self._server.server_port}'

    def __enter__(self) -> 'HubServer':
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def send_client_to(hub: HubServer, cache: Path, monkeypatch) -> None:
    """Let the Hub's client, in this process, ask that server and keep its files in that folder."""
    for name, value in dict(
            ENDPOINT=hub.url,
            HUGGINGFACE_CO_URL_TEMPLATE=hub.url + '/{repo_id}/resolve/{revision}/{filename}',
            HF_HUB_CACHE=str(cache),
            HF_HUB_OFFLINE=False,
            HF_HUB_DISABLE_XET=True,
    ).items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.requests.append(f'{self.command} {self.path}')
            organisation, name, _, _, *file = self.path.strip('/').split('/')
            repository = hub.root / organisation / name
            content = repository.joinpath(*file)
            self.send_response(200 if content.is_file() else 404)
            self.send_header('X-Repo-Commit', COMMIT)
            if content.is_file():
                self.send_header('ETag', f'"{hashlib.sha256(content.read_bytes()).hexdigest()}"')
                self.send_header('Content-Length', str(content.stat().st_size))
            else:
                self.send_header('X-Error-Code', 'EntryNotFound' if repository.is_dir() else 'RepoNotFound')
                self.send_header('Content-Length', '0')
            self.end_headers()
            if self.command == 'GET' and content.is_file():
                self.wfile.write(content.read_bytes())

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    return Handler
