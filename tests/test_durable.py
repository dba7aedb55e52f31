"""Flushing to the disk, on systems that differ in what they open."""
import errno
import os
import sys
import threading

import pytest

from aa_models import durable
from aa_models.errors import InputError, UserError, WriteError


@pytest.mark.parametrize('platform', ['linux', 'win32'])
def test_flush(platform, tmp_path, monkeypatch):
    """Windows opens no folder, and flushes nothing that is open for reading alone."""
    flushed, own_open, own_fsync = [], os.open, os.fsync

    def opened(path, flags, *args, **kwargs):
        if platform == 'win32' and (os.path.isdir(path) or not flags & os.O_RDWR):
            raise PermissionError(13, 'Permission denied')
        return own_open(path, flags, *args, **kwargs)
    monkeypatch.setattr(os, 'fsync', lambda number: (flushed.append(os.fstat(number).st_ino), own_fsync(number)))
    (tmp_path / 'a').write_text('a')
    monkeypatch.setattr(sys, 'platform', platform)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'open', opened)
        durable.flush_tree(tmp_path)
    durable.replace_text(tmp_path / 'b', 'text')
    files = [(tmp_path / name).stat().st_ino for name in 'ab']
    assert set(files) <= set(flushed) and (tmp_path.stat().st_ino in flushed) == (platform == 'linux')
    assert (tmp_path / 'b').read_text() == 'text'


@pytest.mark.parametrize('failing', ['fsync', 'replace'])
def test_no_room(failing, tmp_path, monkeypatch):
    file = tmp_path / 'a'
    durable.replace_text(file, 'old')

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(WriteError, match='a cannot be written: No space left on device'):
        durable.replace_text(file, 'new')
    assert file.read_text() == 'old' and list(tmp_path.iterdir()) == [file]


def test_the_file_of_a_link_is_written(tmp_path):
    (tmp_path / 'file').write_text('old')
    for name, target in (('link', 'file'), ('dangling', 'new')):
        (tmp_path / name).symlink_to(target)
        durable.replace_text(tmp_path / name, 'text')
        assert (tmp_path / name).is_symlink() and (tmp_path / target).read_text() == 'text'
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize('name, said', [
    ('folder', 'is a folder, not a file'), ('to_folder', 'is a folder, not a file'),
    ('nowhere/file', 'is in a folder that does not exist'), ('to_nowhere', 'is in a folder that does not exist'),
    ('file/in_file', 'is in a folder that does not exist'), ('a' * 300 + '/file', 'is in a folder that does not exist'),
    ('file', None), ('to_file', None), ('new', None), ('to_new', None), (os.devnull, None),
])
def test_places_where_no_file_can_be_written(name, said, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').touch()
    for target in ('folder', 'file', 'new', 'nowhere/file'):
        (tmp_path / f'to_{target.partition("/")[0]}').symlink_to(target)
    before = sorted(tmp_path.iterdir())
    if said:
        with pytest.raises(UserError, match=f"^results = .*{name}' {said}$"):
            durable.check_file(tmp_path / name, 'results')
    else:
        durable.check_file(tmp_path / name, 'results')
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize('forbidden', ['file', 'new'])
def test_places_where_nobody_may_write(forbidden, tmp_path, monkeypatch):
    """Of a file that is there it asks the file, else its folder. (Root may write everywhere.)"""
    (tmp_path / 'file').touch()
    asked = []
    monkeypatch.setattr(os, 'access', lambda path, mode: asked.append((str(path), mode)))
    with pytest.raises(InputError, match=f"^output = .*{forbidden}' may not be written$"):
        durable.check_file(tmp_path / forbidden, 'output')
    assert asked == [(str(tmp_path / 'file' if forbidden == 'file' else tmp_path), os.W_OK)]


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='the system has no pipes with names')
def test_a_pipe_stays_one(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    reader = threading.Thread(target=lambda: read.append((tmp_path / 'pipe').read_text()), daemon=True)
    read = []
    reader.start()
    durable.replace_text(tmp_path / 'pipe', 'text')
    reader.join(timeout=60)
    assert read == ['text'] and [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / 'folder').mkdir()
    with pytest.raises(WriteError, match='folder cannot be written'):
        durable.replace_text(tmp_path / 'folder', 'text')
    assert [path.is_dir() for path in tmp_path.iterdir()] == [True]
