METHODS = ['lcsc']
PAPER = 'github.com/imagination-research/LCSC'
CLAIM = 'A searched combination of the checkpoints of one run is better on held-out text than the best exponential average, and that than the last checkpoint.'
NEEDS = ['lm/tiny-path', 'text/held', 'text/calibration.txt']


def measure(lab):
    steps = [lab.model(f'lm/tiny-path/step-{s:04}') for s in (0, 50, 150, 350, 700)]
    last = lab.loss(steps[-1], 'english')
    averages = {}
    for g in (0.5, 0.7, 0.8, 0.9, 0.95):
        a = [(1 - g) * g ** (len(steps) - 1 - i) for i in range(len(steps))]
        averages[g] = lab.loss(lab.merge('lcsc', [(m, {'weight': w / sum(a)}) for m, w in zip(steps, a)]), 'english')
    found = []
    for seed in (1, 2, 3):
        report = lab.search({'merge_method': 'lcsc', 'dtype': 'float32', 'models': [{'model': m} for m in steps],
                             'search': {'rule': 'lcsc', 'text': str(lab.zoo / 'text/calibration.txt'), 'window': 256, 'windows': 12, 'evaluations': 150}}, seed)
        found.append((lab.loss(report['applied']['output'], 'english'), min(report['coefficients'].values())))
    worst = max(loss for loss, _ in found)
    return worst < min(averages.values()) < last, {
        'loss, last': last, 'best exponential average': min(averages.values()), 'searched, worst of 3 seeds': worst, 'least coefficient': min(a for _, a in found)}
