"""The worked examples: their task is what they say, their networks see what they may, attention learns it."""
import re

import pytest
import torch

from aa_models.examples import sequence
from aa_models.examples.sequence import Recall, accuracy, equal_width, sequence_net, train
from command import answered, refused


@pytest.mark.parametrize('causal', [True, False])
def test_answers_are_in_the_sequence(causal):
    """Token by token: an answer is the value shown beside the same key, the nearest so many tokens off."""
    task = Recall(length=20, keys=4, values=3, causal=causal)
    asked = 0
    for tokens, answers, distances in zip(*task.draw(50, torch.Generator().manual_seed(0))):
        assert all(3 <= key < 7 for key in tokens[::2]) and all(answer == -100 for answer in answers[::2])
        for i in range(1, 20, 2):
            told = [j for j in range(1, i if causal else 20, 2)
                    if j != i and tokens[j - 1] == tokens[i - 1] and tokens[j] != 7]
            if tokens[i] != 7 or not told:
                assert answers[i] == -100
                continue
            asked += 1
            assert {tokens[j].item() for j in told} == {answers[i].item()}
            assert min(abs(i - j) for j in told) == distances[i]
    assert asked > 50


@pytest.mark.parametrize('causal, asked', [(True, (0, 17, 40, 63)), (False, (30,))])
@pytest.mark.parametrize('model, reach', [('conv', 4), ('dilated', 126), ('augmented', 126)])  # 126: all
@torch.no_grad()
def test_what_networks_see(causal, asked, model, reach):
    """Causal ones all that was and nothing that comes, the others both ways, half as far."""
    task = Recall(causal=causal)
    tokens = task.draw(2, torch.Generator().manual_seed(0))[0]
    net = sequence_net(task, model, 32).eval()
    for t in asked:
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % task.tokens
        seen = ((net(changed) - net(tokens)).abs().amax((0, 2)) > 1e-5).nonzero().flatten()
        first, last = (t, t + reach) if causal else (t - reach // 2, t + reach // 2)
        assert (seen.min(), seen.max()) == (max(first, 0), min(last, 63))


@pytest.mark.parametrize('causal', [True, False])
def test_parameters_are_equal(causal):
    task = Recall(causal=causal)
    count = {
        model: sum(p.numel() for p in sequence_net(task, model, equal_width(task, model, 48)).parameters())
        for model in sequence.MODELS}
    assert all(count['augmented'] <= n < 1.06 * count['augmented'] for n in count.values()), count


@pytest.mark.slow
def test_attention_learns_what_convolution_cannot():
    """One training of the README's table: far answers all right, against guessing one of 8 values."""
    task = Recall()
    far = {}
    for model, steps in (('augmented', 300), ('conv', 60)):  # more steps cannot help: what it needs is out of its reach
        torch.manual_seed(0)
        net = sequence_net(task, model, equal_width(task, model, 48))
        losses = train(net, task, steps)
        far[model] = accuracy(net, task, 500)[1]
        assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert far['augmented'] > 0.9 and far['conv'] < 0.2, far


def test_command_prints_a_table(capsys):
    words = '--models conv augmented --seeds 2 --steps 3 --batch-size 2 --length 12 --channels 32'
    title, _, _, *rows = answered(capsys, *words.split(), main=sequence.main).splitlines()
    assert '12 tokens' in title and 'chance 12.5%' in title
    assert [re.findall(r'[^| ]+', row)[:2] for row in rows] == [
        ['Conv1d', 'yes'], ['AugmentedConv1d', 'yes'], ['Conv1d', 'no'], ['AugmentedConv1d', 'no']]
    assert all(len(re.findall(r'\d+\.\d ± \d+\.\d %', row)) == 2 for row in rows)


@pytest.mark.parametrize('words,error', [
    ('--length 7', 'length must be even, at least 4, got 7'),
    ('--keys 0', 'keys must be at least 1, got 0'),
    ('--keys 1000 --length 4', 'answers are asked for in 1000 sequences, at least 10 are needed'),
    ('--values 1', 'values must be at least 2, got 1'),
    ('--steps 0', 'steps must be at least 1, got 0'),
    ('--lr nan', 'lr must be at least 1e-09, got nan'),
    ('--channels 16', 'channels must be at least 32, got 16'),
    ('--models lstm', "invalid choice: 'lstm'"),
])
def test_bad_options(capsys, words, error):
    assert error in refused(capsys, *words.split(), main=sequence.main)
