"""Damaged weight files: a clear error or the right model, never a wrong one, a crash or half a model."""
import json
import struct
import zipfile
from dataclasses import replace
from io import BytesIO

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from timm.models import load_pretrained

from aa_models.errors import WeightsError
from aa_models.layers.local_start import balanced
from aa_models.layers.softmax_attention import SoftmaxAttention
from aa_models.models._augmented import checkpoint_filter_fn
from aa_models.models.fit import checked_filter
from fake_weights import NAME, NAME_TAG, NUM_CLASSES

DAMAGES = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def original(checkpoint):
    """A checkpoint's folder and the bytes of its file; the tag is registered with their SHA-256."""
    return checkpoint, (checkpoint / 'model.safetensors').read_bytes()


@pytest.fixture(scope='module')
def models():
    """A model for each number of classes."""
    return {n: timm.create_model(NAME, num_classes=n) for n in (NUM_CLASSES, 3)}


@st.composite
def damages(draw):
    """A function from a file's bytes to other ones, by the part of the format that it hits."""
    kind = draw(st.sampled_from([
        'length', 'byte of the header', 'dtype', 'shape', 'offsets', 'name', 'missing', 'added', 'truncated',
        'appended', 'number', 'nan', 'pointer', 'page', 'zip', 'anything']))
    index, bit = draw(st.integers(0, 2 ** 24)), draw(st.integers(0, 7))
    number = draw(st.one_of(st.integers(0, 2 ** 64 - 1), st.integers(0, 300), st.integers(2 ** 31 - 2, 2 ** 32 + 2)))
    text = draw(st.text(max_size=20))
    dtype = draw(st.sampled_from(['F16', 'BF16', 'F32', 'F64', 'I64', 'U8', 'BOOL', 'F8_E4M3', 'f16', '', 'X']))
    cut = draw(st.sampled_from([0, 1, 7, 8, 9, 64, 'header', 'header+1', 'header-1', 'tensor', 'last', 'any']))
    tail = draw(st.binary(min_size=1, max_size=64))

    def damage(content):
        start = 8 + struct.unpack('<Q', content[:8])[0]
        header, numbers, changed = json.loads(content[8:start]), content[start:], bytearray(content)
        names = [name for name in header if name != '__metadata__']
        name = names[index % len(names)]
        if kind == 'length':
            return struct.pack('<Q', number) + content[8:]
        if kind in ('byte of the header', 'number'):
            where = 8 + index % (start - 8) if kind == 'byte of the header' else start + index % len(numbers)
            changed[where] ^= 1 << bit
            return bytes(changed)
        if kind == 'nan':
            begin = start + header[name]['data_offsets'][0]
            changed[begin:begin + 2] = struct.pack('<H', 0x7E00 if bit % 2 else 0x7C00)
            return bytes(changed)
        if kind == 'dtype':
            header[name]['dtype'] = dtype
        elif kind == 'shape':
            shape = header[name]['shape'] or [1]
            header[name]['shape'] = [shape[:-1], [*shape, 1], shape[::-1], [number, *shape[1:]]][bit % 4]
        elif kind == 'offsets':
            header[name]['data_offsets'][bit % 2] = number if bit < 4 else index
        elif kind == 'name':
            header[text or 'x'] = header.pop(name)
        elif kind == 'missing':
            del header[name]
        elif kind == 'added':
            header[text or 'x'] = dict(dtype='F16', shape=[0], data_offsets=[len(numbers)] * 2)
        elif kind == 'truncated':
            ends = dict(header=start, tensor=start + header[name]['data_offsets'][0], last=len(content) - 1,
                        any=index % len(content), **{'header+1': start + 1, 'header-1': start - 1})
            return content[:ends.get(cut, cut)]
        elif kind == 'appended':
            return content + tail
        elif kind == 'pointer':
            return b'version https://git-lfs.github.com/spec/v1\noid sha256:' + tail.hex().encode() + b'\nsize 1\n'
        elif kind == 'page':
            return f'<!doctype html><html><body>{text}</body></html>'.encode('utf-8', 'replace')
        elif kind == 'zip':
            archive = BytesIO()
            with zipfile.ZipFile(archive, 'w') as file:
                file.writestr('archive/data.pkl', tail)
            return archive.getvalue()
        elif kind == 'anything':
            return tail
        encoded = json.dumps(header).encode()
        return struct.pack('<Q', len(encoded)) + encoded + numbers

    return damage


@DAMAGES
@given(damage=damages())
def test_damage_to_our_own_weights_is_always_noticed(original, damage):
    """The hash knows every bit. All other places are empty here, so there is nothing to fall back on."""
    folder, content = original
    damaged = damage(content)
    (folder / 'model.safetensors').write_bytes(damaged)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('AA_MODELS_WEIGHTS', str(folder.parent))
        patch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
        if damaged == content:
            timm.create_model(NAME_TAG, pretrained=True)
            return
        with pytest.raises(WeightsError, match='wrong SHA-256'):
            timm.create_model(NAME_TAG, pretrained=True)


def contents(file, model):
    """What a file says; only attention whose keys the damage made large is divided anew."""
    tensors = load(file.read_bytes())
    for prefix, module in model.named_modules():
        if isinstance(module, SoftmaxAttention):
            own = {name: tensors[f'{prefix}.{name}'] for name in ('q_const', 'qkv.weight', 'rel_h', 'rel_w')}
            tensors.update({f'{prefix}.{name}': tensor for name, tensor in balanced(own).items()})
    return tensors


@DAMAGES
@given(damage=damages(), num_classes=st.sampled_from([NUM_CLASSES, 3]))
def test_damage_to_a_file_of_the_users(original, damage, num_classes):
    """There is no hash to compare with. What loads must be what the file says, tensor by tensor."""
    folder, content = original
    file = folder.parent / 'users.safetensors'
    file.write_bytes(damage(content))
    try:
        model = timm.create_model(
            NAME, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=dict(file=str(file)))
    except WeightsError as error:
        said = str(file), 'do not fit', 'is infinite or not a number'
        assert any(words in str(error) for words in said)  # noqa: PT017, loading is right, too
        return
    tensors = contents(file, model)
    for name, tensor in model.state_dict().items():
        if num_classes == NUM_CLASSES or not name.startswith('head.fc'):
            expected = tensors[name].to(tensor.dtype)
            assert tensor.shape == expected.shape and torch.equal(tensor.nan_to_num(), expected.nan_to_num()), name


@DAMAGES
@given(damage=damages(), num_classes=st.sampled_from([NUM_CLASSES, 3]))
def test_a_model_that_is_there_is_loaded_whole_or_not_at_all(original, models, damage, num_classes):
    """torch alone copies what fits before it complains of the rest; the check in the filter comes before that."""
    folder, content = original
    file = folder.parent / 'whole.safetensors'
    file.write_bytes(damage(content))
    model = models[num_classes]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cfg = replace(timm.get_pretrained_cfg(NAME), file=str(file))
    checked = checked_filter(checkpoint_filter_fn, cfg, num_classes != NUM_CLASSES, False)
    try:
        load_pretrained(model, cfg.to_dict(), num_classes, filter_fn=checked)
        expected = contents(file, model)
    except Exception:  # what the file is, others tell: here nothing may have been touched
        expected = before
    for name, tensor in model.state_dict().items():
        wanted = expected[name] if num_classes == NUM_CLASSES or not name.startswith('head.fc') else before[name]
        assert torch.equal(tensor.nan_to_num(), wanted.to(tensor.dtype).nan_to_num()), name


def test_a_state_dict_of_the_users_stays_as_it_was(original):
    """One for two models of different sizes: each gets its tables from those of the file."""
    tensors = load(original[1])
    before = dict(tensors)
    for size in (40, 64):
        model = timm.create_model(NAME, num_classes=NUM_CLASSES, img_size=size)
        model.load_state_dict(checkpoint_filter_fn(tensors, model))
        assert tensors.keys() == before.keys() and all(tensors[name] is before[name] for name in before)
