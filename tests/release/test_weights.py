"""What stands under weights/ agrees: files, cards, tables, logs, and what its README says of them."""
import csv
import json
import re
import statistics

import pytest
import timm
import torch
import yaml

from aa_models.release.publication import publish_folder
from aa_models.training.recipe import load_recipe
from aa_models.zoo import own_checkpoints
from repository import ROOT, measured, rows_of

WEIGHTS = ROOT / 'weights'
LITE = 'aa_efficientnet_lite0.tiny_in'
README = (WEIGHTS / 'README.md').read_text(encoding='utf-8')


def read_log(path):
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def logs_of(model, tag):
    """The logs of every seed of a model, that of its checkpoint first."""
    own = WEIGHTS / f'{model}.{tag}' / 'log.csv'
    return [*([own] if own.is_file() else []), *sorted((WEIGHTS / f'logs-{tag}').glob(f'{model}-seed*.csv'))]


def test_folders_are_the_tags():
    assert sorted(path.parent.name for path in WEIGHTS.glob('*/model.safetensors')) == sorted(own_checkpoints())


@pytest.mark.parametrize('name_tag', own_checkpoints())
def test_committed_weights(name_tag):
    """They are fit to be published, as test_publish.py tests it; a tag and its folder are the same model."""
    folder = WEIGHTS / name_tag
    publish_folder(str(folder), f'aa-models/{name_tag}', dry_run=True)
    cfg = timm.get_pretrained_cfg(name_tag)
    assert len(cfg.label_names) == cfg.num_classes
    own, saved = (timm.create_model(name, pretrained=True).eval() for name in (name_tag, f'local-dir:{folder}'))
    for key in ('num_classes', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'label_names'):
        as_json = json.loads(json.dumps(own.pretrained_cfg[key]))
        assert as_json == json.loads(json.dumps(saved.pretrained_cfg[key])), key
    x = torch.randn(1, *cfg.input_size)
    with torch.inference_mode():
        assert torch.equal(own(x), saved(x))


@pytest.mark.parametrize('name_tag', own_checkpoints())
def test_card_says_what_was_measured(name_tag):
    """The table, the log's last row and what the card says beside its accuracy, which is that of the table."""
    folder, row = WEIGHTS / name_tag, measured(name_tag)
    for column in ('top1', 'top5'):
        assert float(row[column]) == pytest.approx(100 - float(row[f'{column}_err']))
    card = (folder / 'README.md').read_text(encoding='utf-8')
    assert re.search(r'^\| throughput \| [\d,]+ images a second on ', card, re.MULTILINE)
    # the log was measured in the run's own precision; without labels it has the agreement with the teacher
    if not load_recipe(folder / 'recipe.yaml').unlabelled:
        assert abs(float(read_log(folder / 'log.csv')[-1]['eval_top1']) - float(row['top1'])) < 0.5
    model = timm.create_model(name_tag, device='meta')
    assert float(row['param_count']) == round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
    assert int(row['img_size']) == model.pretrained_cfg['input_size'][1]


@pytest.mark.parametrize(
    'path', sorted([*WEIGHTS.glob('*/log.csv'), *WEIGHTS.glob('logs-*/*.csv')]),
    ids=lambda path: f'{path.parent.name}-{path.stem}')
def test_logs_are_whole(path):
    """Every epoch once, the last one validated; as many as the recipe asks for where the weights are here."""
    rows = read_log(path)
    assert [int(row['epoch']) for row in rows] == list(range(len(rows))) and rows[-1]['eval_top1']
    recipe = path.with_name('recipe.yaml')
    if recipe.is_file():
        assert len(rows) == yaml.safe_load(recipe.read_text(encoding='utf-8'))['epochs']


@pytest.mark.parametrize('title, tag, model, seeds', [
    *(('CIFAR-100', 'cifar100', f'{prefix}simplecnn', 3) for prefix in ('', 'aa_', 'laa_')),
    *(('CIFAR-100', 'cifar100', f'{prefix}resnet18', 1) for prefix in ('', 'aa_')),
    *(('Tiny-ImageNet', 'tiny_in', f'{prefix}resnet18', 1) for prefix in ('', 'aa_', 'laa_')),
])
def test_tables_of_readme(title, tag, model, seeds):
    top1 = [float(read_log(path)[-1]['eval_top1']) for path in logs_of(model, tag)]
    figure = f'{statistics.mean(top1):.2f}' + (f' ± {statistics.stdev(top1):.2f}' if len(top1) > 1 else '')
    assert len(top1) == seeds
    assert f'{figure} %' in rows_of(README, title)[model]


@pytest.mark.parametrize('title, name_tag, before', [
    *(('CIFAR-100', f'{prefix}simplecnn.muon_cifar100', ['plain8']) for prefix in ('', 'aa_', 'laa_')),
    ('CIFAR-100', 'aa_resnet18.muon_cifar100', ['resnet18-plain11', 'resnet18-plain12']),
    ('Tiny-ImageNet', 'aa_resnet18.muon_tiny_in', ['plain5']),
])
def test_tables_of_late_attention(title, name_tag, before):
    """Their figures are those of the files; the epochs are those of the plain net before and of the run after it."""
    row = rows_of(README, title)[name_tag]
    assert row[-2:] == [f'{float(measured(name_tag)[column]):.2f} %' for column in ('top1', 'top5')]
    tag = name_tag.partition('.')[2]
    first = sum(len(read_log(WEIGHTS / f'logs-{tag}' / f'{name}.csv')) for name in before)
    last = len(read_log(WEIGHTS / name_tag / 'log.csv'))
    assert f'{first + last}, {0 if name_tag.startswith("simplecnn") else last}' in row


@pytest.mark.parametrize('tag, row', [('muon_cifar100', '128 px | 14, 0'), ('muon_tiny_in', '7, 0')])
def test_plain_nets_of_late_attention(tag, row):
    last = read_log(WEIGHTS / f'logs-{tag}' / 'resnet18-seed42.csv')[-1]
    figures = ' | '.join(f'{float(last[column]):.2f} %' for column in ('eval_top1', 'eval_top5'))
    assert f'| plain ResNet-18 | {row} | – | {figures} |' in README


@pytest.mark.parametrize('name', ['resnet18-back64', 'resnet18-two64', 'aa_resnet18-two64'])
def test_two_epochs_after_conversion(name):
    last = read_log(WEIGHTS / 'logs-muon_cifar100' / f'{name}.csv')[-1]
    top1, top5, loss = (float(last[f'eval_{column}']) for column in ('top1', 'top5', 'loss'))
    row, = re.findall(rf'^.*logs-muon_cifar100/{name}.csv.*$', README, re.MULTILINE)
    assert row.endswith(f'| {top1:.2f} % | {top5:.2f} % | {loss:.3f} |')


def test_first_epochs_of_late_attention():
    assert f'had {float(read_log(WEIGHTS / "logs-muon_cifar100" / "plain8.csv")[-1]["eval_top1"]):.2f} %' in README


@pytest.mark.parametrize('name, words', [
    ('simplecnn', 'plain simple net'), ('aa_simplecnn', 'with attention'), ('laa_simplecnn', 'with linear attention')])
def test_seeds_of_late_attention(name, words):
    logs = [read_log(WEIGHTS / 'logs-muon_cifar100' / f'{name}-seed{seed}.csv') for seed in (43, 44)]
    top1 = [float(measured(f'{name}.muon_cifar100')['top1']), *(float(log[-1]['eval_top1']) for log in logs)]
    mean = f'{statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f} %'
    assert f'| {words} | {" | ".join(f"{value:.2f} %" for value in top1)} | {mean} |' in README


def test_plain_net_of_equal_parameters():
    params = sum(p.numel() for p in timm.create_model('simplecnn', channels=[29, 58, 117, 117, 117]).parameters())
    log = read_log(WEIGHTS / 'logs-muon_cifar100' / 'simplecnn-336k.csv')
    assert f'{params:,} parameters' in README and f'comes to {float(log[-1]["eval_top1"]):.2f} % of the test' in README


@pytest.mark.parametrize('stage, log', [
    ('narrow', 'logs-wrn_cifar100/wrn28_2-narrow.csv'), ('wide', 'logs-wrn_cifar100/wrn28_10-wide.csv'),
    ('wide, on', 'logs-wrn_cifar100/wrn28_10-wide-on.csv'), ('with a teacher', 'logs-wrn_cifar100/wrn28_10-taught.csv'),
    ('plain', 'wrn28_10.cifar100/log.csv'), ('attention', 'aa_wrn28_10.cifar100/log.csv'),
    ('linear attention', 'laa_wrn28_10.cifar100/log.csv')])
def test_stages_of_wide_resnets(stage, log):
    """Epochs and accuracy of each are those of its log, a checkpoint's accuracy that of its file."""
    row, = re.findall(rf'^\| \[{stage}\]\({re.escape(log)}\) .*$', README, re.MULTILINE)
    *_, epochs, _rate, top1, _end = row.split('|')
    rows, name_tag = read_log(WEIGHTS / log), log.partition('/')[0]
    assert sum(1 if part.strip() == '½' else int(part) for part in epochs.replace('–', '0').split(',')) == len(rows)
    figure = rows[-1]['eval_top1'] if name_tag.startswith('logs-') else measured(name_tag)['top1']
    assert top1.strip() == f'{float(figure):.2f} %'


def test_narrow_wide_resnets():
    for stage in ('narrow', 'narrowed'):
        figure = read_log(WEIGHTS / 'logs-wrn_cifar100' / f'wrn28_2-{stage}.csv')[-1]['eval_top1']
        assert f'{float(figure):.2f} %' in README[README.index('**Narrow Wide ResNets, from the wide one.**'):]
    for name, words in (('', 'plain'), ('aa_', 'with attention'), ('laa_', 'with linear attention')):
        logs = [read_log(WEIGHTS / 'logs-wrn_cifar100' / f'{name}wrn28_2-narrowed-seed{seed}.csv') for seed in (43, 44)]
        top1 = [float(measured(f'{name}wrn28_2.cifar100')['top1']), *(float(log[-1]['eval_top1']) for log in logs)]
        mean = f'{statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f} %'
        seeds = ' [|] '.join(f'{value:.2f} %' for value in top1)
        assert re.search(rf'^[|] {words} [|] [^|]* [|] {seeds} [|] {mean} [|]$', README, re.MULTILINE)


def test_late_attention_on_cifar10():
    trunk = 'logs-cifar10/resnet18_cifar-plain12.csv'
    before, after = read_log(WEIGHTS / trunk), read_log(WEIGHTS / 'logs-cifar10' / 'aa_resnet18_cifar-late.csv')
    plain, augmented = (rows_of(README, 'CIFAR-10')[name] for name in ('resnet18_cifar', 'aa_resnet18_cifar'))
    assert f'({trunk}) | 11.17 M | {len(before)}, 0 |' in README
    assert f'{len(before) + len(after)}, {len(after)}' in augmented
    for row, log in ((plain, before), (augmented, after)):
        assert row[-3:-1] == [f'{float(log[-1][f"eval_{column}"]):.2f} %' for column in ('top1', 'top5')]


def test_lite_on_tiny_imagenet():
    """The augmented network's figures are those of its file, the plain one's those of its log."""
    plain, own = (rows_of(README, 'Tiny-ImageNet')[name] for name in ('tf_efficientnet_lite0', LITE))
    last = read_log(WEIGHTS / 'logs-tiny_in' / 'efficientnet_lite0-seed42.csv')[-1]
    for row, figures in ((plain, [last['eval_top1'], last['eval_top5']]), (own, [measured(LITE)[column] for column in (
            'top1', 'top5')])):
        assert row[-2:] == [f'{float(figure):.2f} %' for figure in figures]


@pytest.mark.parametrize('name', ['cifar100', 'cifar100_tenth'])
def test_fine_tuning_at_one_rate(name):
    top1 = float(read_log(WEIGHTS / 'logs-finetune_flat' / f'{name}.csv')[-1]['eval_top1'])
    assert f'{top1:.2f} %' in README[README.index('**At one rate for all layers** ([logs](logs-finetune_flat))'):]


@pytest.mark.parametrize('start, words', [('in1k', 'from `in1k`'), ('tiny_in', 'from `aa_efficientnet_lite0.tiny_in`')])
def test_fine_tuning_with_known_classes(start, words):
    top1 = float(read_log(WEIGHTS / 'logs-finetune_known' / f'{start}.csv')[-1]['eval_top1'])
    assert f'{top1:.2f} % {words}' in ' '.join(README.split())


def test_fine_tuning_from_a_linear_probe():
    text, means = README[README.index('**From a linear probe** ([logs](logs-finetune_probe))'):], []
    for row, (folder, name) in zip(re.findall(r'^\| (?:`|the same).* \|$', text, re.MULTILINE), [
            ('logs-finetune_probe', 'tf_efficientnet_lite0'), ('logs-finetune_probe', 'aa_efficientnet_lite0'),
            ('logs-finetune_probe_before', 'aa_efficientnet_lite0')]):
        top1 = [float(read_log(WEIGHTS / folder / f'{name}-seed{seed}.csv')[-1]['eval_top1']) for seed in (42, 43, 44)]
        means.append(f'{statistics.mean(top1):.2f}')
        cells = *(f'{x:.2f}' for x in top1), f'{means[-1]} ± {statistics.stdev(top1):.2f}'
        assert row.endswith(f'| {" | ".join(cells)} |')
    assert f'**{means[1]} %** in three epochs' in text and f'to {means[0]} %; top-1' in ' '.join(text.split())
    front = ' '.join((ROOT / 'README.md').read_text(encoding='utf-8').split())
    assert f'[from a linear probe](weights/README.md#fine-tuning) to {means[1]} %' in front


@pytest.mark.parametrize('folder', ['caltech101', 'cifar100', 'imagewoof'])
@pytest.mark.parametrize('name, words', [
    ('tf_efficientnet_lite0', '`tf_efficientnet_lite0`, plain'), ('aa_efficientnet_lite0', '`aa_efficientnet_lite0`')])
def test_fine_tuning_on_other_folders(folder, name, words):
    logs = (read_log(WEIGHTS / f'logs-finetune_{folder}' / f'{name}-seed{seed}.csv') for seed in (42, 43, 44))
    top1 = [float(log[-1]['eval_top1']) for log in logs]
    cells = *(f'{x:.2f}' for x in top1), f'{statistics.mean(top1):.2f} ± {statistics.stdev(top1):.2f}'
    assert f'| {words} | {" | ".join(cells)} |' in README


@pytest.mark.parametrize('name, words', [
    ('tf_efficientnet_lite0', '`tf_efficientnet_lite0`, plain'), ('aa_efficientnet_lite0', '`aa_efficientnet_lite0`')])
def test_fine_tuning_on_tiny_imagenet(name, words):
    logs = sorted((WEIGHTS / 'logs-finetune_tiny_in').glob(f'{name}-seed*.csv'))
    cells = [f'{float(read_log(log)[-1]["eval_top1"]):.2f}' for log in logs]
    assert f'| {words} | {" | ".join(cells)} |' in README


def test_what_keys_do():
    undivided = read_log(WEIGHTS / 'logs-finetune_cifar100' / 'aa_efficientnet_lite0-undivided.csv')[-1]
    assert f'instead of {float(undivided["eval_top1"]):.2f} % ({float(undivided["eval_loss"]):.3f})' in README
    losses = [float(read_log(WEIGHTS / 'logs-finetune_cifar100' / f'{name}.csv')[-1]['eval_loss']) for name in (
        'held_out', 'held_out-undivided', 'held_out-plain')]
    assert '(losses of {:.3f} and {:.3f}, plain {:.3f})'.format(*losses) in ' '.join(README.split())


def test_attention_is_behind_from_a_plain_start():
    logs = [read_log(WEIGHTS / 'logs-muon_cifar100' / f'held_out-{name}.csv') for name in (
        'plain8', 'attention_0.03', 'plain_0.03', 'attention_0.015', 'plain_0.015')]
    figures = [f'{float(log[-1]["eval_top1"]):.2f}' for log in logs]
    words = r'\({} % of .* {} against {} % at .* {} against {} % at 0.015'.format(*figures)
    assert re.search(words, ' '.join(README.split()))


@pytest.mark.parametrize('log, words', [
    ('plain', 'plain'), ('constant16', 'attention, its constant 16, as the weights were published'),
    ('constant16-not_distilled', 'the same, converted anew, without the distillation'),
    ('fixed', 'its constant 16, queries, keys and tables fixed'), ('constant1', 'its constant 1'),
    ('constant1-softer', 'its constant 1, β a quarter, so that heads look further around')])
def test_what_kept_attention_behind(log, words):
    last = read_log(WEIGHTS / 'logs-finetune_probe_held_out' / f'{log}.csv')[-1]
    assert f'| {words} | {float(last["eval_top1"]):.2f} % | {float(last["eval_loss"]):.3f} |' in README


@pytest.mark.parametrize('task, words', [('cifar100', 'a tenth of its pictures'), ('shapes', 'eight drawn figures')])
def test_gains_of_fine_tuning_in_readme(task, words):
    runs = [read_log(WEIGHTS / 'logs-finetune' / f'{task}_{start}.csv') for start in ('pretrained', 'scratch')]
    assert len(runs[0]) == len(runs[1])
    pretrained, scratch = (float(run[-1]['eval_top1']) for run in runs)
    row, = re.findall(rf'^\| .*{words}.*$', README, re.MULTILINE)
    assert row.endswith(f'| {pretrained:.2f} % | {scratch:.2f} % | {pretrained - scratch:.2f} |')
    assert pretrained - scratch > 10
