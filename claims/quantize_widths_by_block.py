import random

METHODS = ['rtn', 'lim', 'zd']
PAPER = 'arXiv:2406.17415'
CLAIM = 'With 4 bits for half of the blocks and 2 for the others, choosing them by how much they change a token loses less than most of ten random choices.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    chance = random.Random(1)
    orders = [chance.sample(range(6), 3) for _ in range(10)]
    losses = []
    for raised in orders:
        made = lab.quantized('rtn', '--bits', 2, '--group', 64, '--rule', f"layers[.]({'|'.join(map(str, sorted(raised)))})[.]=4/64", calibration=None)
        losses.append(lab.lost(made)[0])
    numbers = {'random choices, least': min(losses), 'middle': sorted(losses)[5], 'most': max(losses)}
    for by in ('lim', 'zd'):
        numbers[by] = lab.lost(lab.quantized('rtn', '--group', 64, '--budget', '3.5bpw', '--budget-by', by))
        numbers[f'{by} is below'] = sum(numbers[by][0] < x for x in losses)
    return numbers['lim is below'] > 5, numbers
