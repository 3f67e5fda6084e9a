METHODS = ['shifts+gptq', 'gptq']
PAPER = 'arXiv:2307.09782'
CLAIM = 'Codes of E2M1 in groups of 256 lose at most a tenth more when the scales of a row differ by powers of two, and more when all are powers of two.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    four = ('--numbers', 'e2m1', '--group', 256)
    free = lab.quantized('gptq', *four)
    ratios, powers = (lab.quantized('shifts+gptq', *four, '--set', f'shifts.rule={rule}') for rule in (2, 1))
    more, worse = lab.lost(ratios, of=1.1, less=free), lab.lost(powers, less=ratios)
    return more[0] <= 0 and worse[0] > 0, {'nats lost, free scales': lab.lost(free), 'ratios': lab.lost(ratios), 'powers': lab.lost(powers),
                                           'ratios less 1.1 of free': more, 'powers less ratios': worse}
