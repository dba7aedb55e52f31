"""A Hub on this machine: serves folders as `/ORGANISATION/NAME/resolve/<revision>/<file>`, as the Hub's client asks.

It takes uploads too, in the client's own steps: create, preupload, LFS batch, PUT, commit.
"""
import base64
import hashlib
import json
import threading
from collections.abc import Callable
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
        token: What whoever writes must send.
        commits: Summary and names of files of every commit so far.
        fault: What happens in place of a normal answer: `fault(handler, file)` returns True where it has answered.
    """
    token = 'hf_token_of_the_tests'

    def __init__(self, root: Path) -> None:
        self.root = root
        self.requests: list[str] = []
        self.fault: Callable[[BaseHTTPRequestHandler, Path], bool] = lambda handler, file: False
        self.commits: list[tuple[str, list[str]]] = []
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}  # uploaded by LFS and not yet in a commit, by SHA-256
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
    template = hub.url + '/{repo_id}/resolve/{revision}/{filename}'
    constants = dict(ENDPOINT=hub.url, HUGGINGFACE_CO_URL_TEMPLATE=template, HF_HUB_CACHE=str(cache))
    for name, value in dict(constants, HF_HUB_OFFLINE=False, HF_HUB_DISABLE_XET=True).items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            hub.requests.append(f'{self.command} {self.path}')
            organisation, name, _, _, *file = self.path.strip('/').split('/')
            repository = hub.root / organisation / name
            content = repository.joinpath(*file)
            if hub.fault(self, content):
                return
            if content.is_file():
                etag = hashlib.sha256(content.read_bytes()).hexdigest()
                self.send(200, content.read_bytes(), {'X-Repo-Commit': COMMIT, 'ETag': f'"{etag}"'})
            else:
                error = 'EntryNotFound' if repository.is_dir() else 'RepoNotFound'
                self.send(404, b'', {'X-Repo-Commit': COMMIT, 'X-Error-Code': error})

        do_GET = do_HEAD

        def do_POST(self) -> None:
            hub.requests.append(f'{self.command} {self.path}')
            body = self.rfile.read(int(self.headers['Content-Length']))
            path, _, query = self.path.partition('?')
            if self.headers.get('Authorization') != f'Bearer {hub.token}':
                return self.answer(401, dict(error='Invalid username or password.'))
            if path == '/api/validate-yaml':
                return self.answer(200, dict(errors=[], warnings=[]))
            if path == '/api/repos/create':
                asked = json.loads(body)
                repository = f'{asked["organization"]}/{asked["name"]}'
                hub.private.setdefault(repository, asked.get('visibility') == 'private' or bool(asked.get('private')))
                return self.answer(200, dict(url=f'{hub.url}/{repository}', name=repository, id=repository))
            if '/preupload/' in path:
                files = [dict(path=file['path'], shouldIgnore=False,
                              uploadMode='lfs' if file['path'].endswith('.safetensors') else 'regular')
                         for file in json.loads(body)['files']]
                return self.answer(200, dict(files=files))
            if path.endswith('.git/info/lfs/objects/batch'):
                objects = [dict(blob, actions=dict(upload=dict(href=f'{hub.url}/lfs/{blob["oid"]}')))
                           for blob in json.loads(body)['objects']]
                return self.answer(200, dict(transfer='basic', objects=objects))
            if '/commit/' in path:
                return self.commit(path.split('/api/models/')[1].split('/commit/')[0], body, 'create_pr' in query)
            return self.answer(404, dict(error='not found'))

        def do_PUT(self) -> None:
            hub.requests.append(f'{self.command} {self.path}')
            hub.blobs[self.path.rpartition('/')[2]] = self.rfile.read(int(self.headers['Content-Length']))
            self.answer(200, {})

        def commit(self, repository: str, body: bytes, pull_request: bool) -> None:
            header, *files = [json.loads(line) for line in body.splitlines()]
            for file in files:
                target = hub.root / repository / file['value']['path']
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(hub.blobs[file['value']['oid']] if file['key'] == 'lfsFile' else (
                    base64.b64decode(file['value']['content'])))
            hub.commits.append((header['value']['summary'], sorted(file['value']['path'] for file in files)))
            answer = dict(commitUrl=f'{hub.url}/{repository}/commit/{COMMIT}', commitOid=COMMIT)
            if pull_request:
                answer['pullRequestUrl'] = f'{hub.url}/{repository}/discussions/1'
            self.answer(200, answer)

        def answer(self, status: int, content: dict) -> None:
            self.send(status, json.dumps(content).encode(), {'Content-Type': 'application/json'})

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            """What is asked by HEAD has no body; a header of the length may tell another one."""
            self.send_response(status)
            for name, value in {'Content-Length': str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != 'HEAD':
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keeps the test's output clean."""

    return Handler
