import csv
import json
import math
import struct

METHODS = ['measure ranks']
PAPER = 'arXiv:2510.15262'
CLAIM = 'Under weight decay the largest singular value grows as the root of learning rate over decay (log-log correlation above 0.9 over the settings).'
NEEDS = ['vision/population']
SETTINGS = 12


def measure(lab):
    """The dozen networks nearest to the steady state that the rule is about (learning rate x decay x steps of 1 and more; few get there). The exponent of
    the width takes trained models of several widths: none are at hand."""
    folder = lab.zoo / 'vision/population'
    rows = list(csv.DictReader(open(folder / 'scores.csv', encoding='utf-8')))
    stored = (folder / 'models.safetensors').read_bytes()
    start = 8 + struct.unpack('<Q', stored[:8])[0]
    header = json.loads(stored[8:start])
    numbers, holds = {}, True
    for optimizer in ('adam', 'sgd'):
        near = lambda row: float(row['lr']) * float(row['decay']) * int(row['steps'])
        chosen = sorted((r for r in rows if r['optimizer'] == optimizer), key=near)[-SETTINGS:]
        tensors = {}
        for row in chosen:
            for name in ('layers.0.weight', 'layers.1.weight'):
                shape, begin = header[name]['shape'][1:], start + header[name]['data_offsets'][0]
                n = shape[0] * shape[1]
                tensors[f"{row['model']}.{name}"] = shape, struct.unpack_from(f'<{n}f', stored, begin + 4 * n * int(row['model']))
        found = {t['name']: t['values']['ranks.spectral'] for t in lab.measured([lab.store(tensors)], 'ranks')['models'][0]['tensors']}
        x = [0.5 * math.log(float(r['lr']) / float(r['decay'])) for r in chosen]
        numbers[f'lr decay steps, {optimizer}'] = f'{near(chosen[0]):.3g}..{near(chosen[-1]):.3g}'
        for name in ('layers.0.weight', 'layers.1.weight'):
            y = [math.log(found[f"{r['model']}.{name}"]) for r in chosen]
            r = correlation(x, y)
            numbers[f'correlation, {optimizer}, {name[:8]}'] = r
            holds = holds and r > 0.9
    return holds, numbers


def correlation(x, y):
    centred = lambda v: [a - sum(v) / len(v) for a in v]
    a, b = centred(x), centred(y)
    return sum(p * q for p, q in zip(a, b)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
