METHODS = ['nearswap']
PAPER = 'mergekit'
CLAIM = 'No element moves further from the base than t.'
NEEDS = []


def measure(lab):
    base, other = lab.model('tiny-base'), lab.model('tiny-german')
    t = 0.001
    out = lab.merge_config({'merge_method': 'nearswap', 'dtype': 'float32', 'base_model': base, 'parameters': {'t': t}, 'models': [{'model': other}]})
    moved = lab.run('diff', out, base)['total']['max_abs']
    return moved <= t * (1 + 1e-3), {'t': t, 'largest move': moved}
