"""The Hub as it really is: what it answers, each time the weights load or one message says why, and the next try works.

A server on this machine speaks the Hub's protocol to the Hub's own client.
"""
import contextlib
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import threading
import time

import huggingface_hub.constants
import pytest
import timm
import torch

from aa_models.errors import HubError, HubWeightsError, WeightsError, WorkError
from aa_models.models.create import build_model, check_name
from aa_models.models.weight_files import locate
from aa_models.zoo import expected_sha256
from command import run_command
from fake_weights import NAME, NAME_TAG, logits, put
from hub_server import COMMIT
from repository import LION


@pytest.fixture
def hub(hub, places, checkpoint, monkeypatch):
    """The Hub is the only place with weights; the client's pauses between its tries are counted, not waited for."""
    put(checkpoint, places['hub'])
    # the client resumes after whole pieces, which are larger than this file
    monkeypatch.setattr(huggingface_hub.constants, 'DOWNLOAD_CHUNK_SIZE', 1 << 16)
    hub.pauses = []
    monkeypatch.setattr(time, 'sleep', hub.pauses.append)
    yield hub
    assert sum(hub.pauses) < 60


# --- what a server may do; after some of it the client itself tries again


def answer(handler, status, body=b'', **headers):
    handler.send(status, body, {name.replace('_', '-'): value for name, value in headers.items()})
    return True


def described(file, **changes):
    """The headers of a file."""
    content = file.read_bytes()
    return {'X_Repo_Commit': COMMIT, 'ETag': f'"{hashlib.sha256(content).hexdigest()}"',
            'Content_Length': str(len(content)), **changes}


def always(status, **headers):
    return lambda handler, file: answer(handler, status, **headers)


def once(fault, command='GET'):
    left = [fault]

    def faulty(handler, file):
        return handler.command == command and bool(left) and left.pop()(handler, file)
    return faulty


def to_a_cdn(handler, file):
    """As the Hub does for large files: the answer to HEAD tells what lies elsewhere."""
    if handler.path.startswith('/cdn/'):
        return answer(handler, 200, to_a_cdn.content)
    to_a_cdn.content = file.read_bytes()
    size = str(len(to_a_cdn.content))
    there = described(file, X_Linked_Size=size, X_Linked_ETag=described(file)['ETag'], Content_Length='0')
    port = handler.server.server_port
    return answer(handler, 302, Location=f'http://localhost:{port}/cdn/of/the/hub', **there)  # another host by its name


def cut_in_the_middle(handler, file):
    """Half of the file, then nothing more; who asks for the rest gets it."""
    content, wanted = file.read_bytes(), handler.headers.get('Range')
    if handler.command != 'GET':
        return False
    if wanted:
        begin = int(wanted.removeprefix('bytes=').split('-')[0])
        return answer(handler, 206, content[begin:], Content_Range=f'bytes {begin}-{len(content) - 1}/{len(content)}')
    handler.close_connection = True
    return answer(handler, 200, content[:len(content) // 2], **described(file))


def wrong_content(handler, file):
    return answer(handler, 200, bytes(file.stat().st_size), **described(file))


def slow(handler, file):
    if handler.command != 'GET':
        return False
    content = file.read_bytes()
    answer(handler, 200, b'', **described(file))
    for begin in range(0, len(content), 1 + len(content) // 10):
        threading.Event().wait(0.05)
        handler.wfile.write(content[begin:begin + 1 + len(content) // 10])
    return True


def hang_up(handler, file):
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


FAULTS = {  # what the server does, and words of the message; without them the weights load all the same
    'as it should': (lambda handler, file: False, None),
    'to a CDN': (to_a_cdn, None),
    'too many requests once': (once(always(429, Retry_After='1')), None),
    'cut in the middle': (cut_in_the_middle, None),
    'wrong ETag': (
        lambda handler, file: answer(handler, 200, file.read_bytes(), **described(file, ETag='"0123"')), None),
    'slow': (slow, None),
    'wrong content once': (once(wrong_content), None),
    'not logged in': (always(401, X_Error_Code='GatedRepo'), '401'),
    'no access': (always(403, X_Error_Code='GatedRepo'), '403'),
    'no such repository': (always(404, X_Error_Code='RepoNotFound'), '404'),
    'no such file': (always(404, X_Error_Code='EntryNotFound'), '404'),
    'too many requests': (always(429, Retry_After='1'), '429'),
    'error once': (once(always(500)), '500'),
    'unavailable once': (once(always(503)), '503'),
    'error': (always(500), '500'),
    'hung up': (hang_up, 'Hub'),
    'wrong length': (lambda handler, file: handler.command == 'GET' and answer(
        handler, 200, file.read_bytes()[:-100]), 'Hub'),
    'wrong content': (wrong_content, 'wrong SHA-256'),
    'another page': (lambda handler, file: answer(
        handler, 200, b'<html>Log in to the network</html>', Content_Type='text/html'), 'Hub'),
}
FINAL = ('401', '403', '404', 'wrong SHA-256')


@pytest.mark.parametrize('fault, words', FAULTS.values(), ids=FAULTS)
def test_one_message_and_the_next_try_works(fault, words, hub, expected):
    hub.fault = fault
    if words:
        with pytest.raises(WeightsError) as error:
            timm.create_model(NAME, pretrained=True)
        message = str(error.value)
        assert isinstance(error.value, WorkError) == (words not in FINAL)  # the exit status: 1 for what may be mended
        assert words in message and f'aa-models/{NAME_TAG}' in message
        assert 'AA_MODELS_WEIGHTS' in message and 'pretrained=False' in message  # what was tried, what to do
        hub.fault, _ = FAULTS['as it should']
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)


@contextlib.contextmanager
def nobody_listening(hub, monkeypatch):
    """Have the client ask a port where it is refused."""
    constants = huggingface_hub.constants
    with socket.socket() as unused, monkeypatch.context() as patch:
        unused.bind(('127.0.0.1', 0))
        closed = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.url, f'http://127.0.0.1:{unused.getsockname()[1]}')
        patch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', closed)
        yield


def test_refused_connection(hub, expected, monkeypatch):
    with nobody_listening(hub, monkeypatch):
        with pytest.raises(HubWeightsError, match='Hub: aa-models/.*the Hub was not reached'):
            timm.create_model(NAME, pretrained=True)
        for name in ('resnet18.a1_in1k', 'aa_resnet18.from_a1_in1k', 'hf-hub:me/mine'):  # a config, what timm fetches
            with pytest.raises(HubError, match='is not on this machine, and the Hub was not reached'):
                build_model(name, pretrained=True)
    assert not hub.pauses  # nobody waits for nothing
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)


@pytest.mark.parametrize('file', ['model.safetensors', 'mine.safetensors'])
def test_repository_of_which_the_config_alone_is_kept(file, hub, places, expected, capsys, monkeypatch):
    """A Hub that does not answer is asked once, for the weights; with them in the cache the model is made."""
    folder = places['hub'] / NAME_TAG
    (folder / 'model.safetensors').rename(folder / file)
    if file != 'model.safetensors':
        config = json.loads((folder / 'config.json').read_text())
        config['pretrained_cfg']['hf_hub_filename'] = file
        (folder / 'config.json').write_text(json.dumps(config))
    model = f'hf-hub:aa-models/{NAME_TAG}'
    assert check_name(model) == NAME
    for ask in (lambda: build_model(model, pretrained=True), lambda: check_name(model, weights=True)):
        hub.fault, hub.requests[:] = hang_up, []
        with pytest.raises(HubError, match=f'{file} of aa-models/{NAME_TAG} is not on this machine, and the Hub was'):
            ask()
        assert hub.requests == [f'HEAD /aa-models/{NAME_TAG}/resolve/main/{file}'] and not hub.pauses
    hub.requests.clear()
    status, _, err = run_command(capsys, 'predict', LION, '--model', model)
    assert status == 1 and 'the Hub was not reached' in err and len(hub.requests) == 1
    hub.fault, _ = FAULTS['as it should']
    assert torch.equal(logits(build_model(model, pretrained=True)), expected)
    with nobody_listening(hub, monkeypatch):
        assert torch.equal(logits(build_model(model, pretrained=True)), expected) and not hub.pauses


def test_offline_without_a_cache_and_with_one(hub, expected, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(WeightsError, match='offline'):
        timm.create_model(NAME, pretrained=True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', False)
    timm.create_model(NAME, pretrained=True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)


def test_a_spoiled_cache_is_mended(hub, expected, tmp_path):
    file = locate(timm.get_pretrained_cfg(NAME))
    assert (tmp_path / 'cache') in file.parents
    file.write_bytes(b'spoiled')
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)


def _locate_in_a_process(cache, limit):
    """Run in a child: the SHA-256 of what `locate` finds there, or the message of its error."""
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error in place of the end
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        return hashlib.sha256(locate(timm.get_pretrained_cfg(NAME), cache).read_bytes()).hexdigest()
    except WeightsError as error:
        return str(error)


def in_processes(cache, count=1, limit=0):
    with multiprocessing.get_context('fork').Pool(count, maxtasksperchild=1) as pool:
        return pool.starmap_async(_locate_in_a_process, [(cache, limit)] * count, chunksize=1).get(300)


def test_eight_processes_on_an_empty_cache(hub, tmp_path):
    assert in_processes(tmp_path / 'shared', count=8) == 8 * [expected_sha256(timm.get_pretrained_cfg(NAME))]


def test_files_that_may_not_grow(hub, tmp_path):
    """As on a full disk the transfer ends in the middle; where there is room again the next one works."""
    message, = in_processes(tmp_path / 'cache', limit=10_000)
    assert f'Hub: aa-models/{NAME_TAG}' in message and 'OSError' in message
    assert in_processes(tmp_path / 'cache') == [expected_sha256(timm.get_pretrained_cfg(NAME))]


def test_a_cache_that_cannot_be_written(hub, expected, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WeightsError, match='Hub: aa-models/.*Error'):
        timm.create_model(NAME, pretrained=True, cache_dir=tmp_path / 'file' / 'cache')
    if os.geteuid():  # nothing is read-only to root
        (tmp_path / 'locked').mkdir(0o500)
        with pytest.raises(WeightsError, match='Hub: aa-models/.*Error'):
            timm.create_model(NAME, pretrained=True, cache_dir=tmp_path / 'locked')
    assert torch.equal(logits(timm.create_model(NAME, pretrained=True)), expected)
